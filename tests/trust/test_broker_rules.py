"""The broker policy, and that what is generated from it for either broker says the same."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_cloud.broker import dynsec, policy, tickets
from edgefleet_cloud.broker.policy import Allowed
from edgefleet_protocol import topics
from edgefleet_protocol.topics import DOWN_KINDS, UP_KINDS

DEVICES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,12}", fullmatch=True)
WORDS = st.sampled_from(
    ["ef", "1", "d", "fleet", "meta", "blob", "up", "down", "hub", "marker", "$SYS", "$share", "",
     "a", "b", "x.y", "timestamp", *UP_KINDS, *DOWN_KINDS]
)  # fmt: skip
TOPICS = st.lists(WORDS, min_size=1, max_size=7).map("/".join).filter(bool)
PARTS = {
    "device": policy.of_device("a"),
    "link": policy.of_link(),
    "control": policy.of_control(),
    "watch": policy.of_watch(),
}


def near_topics(device: str) -> st.SearchStrategy[str]:
    """Topics of which many are almost allowed."""
    levels = st.sampled_from([device, "a", "hub-probe", "+", "other"])
    ends = st.sampled_from([*UP_KINDS, *DOWN_KINDS, "x", "x/y", ""])
    own = st.builds(
        "ef/1/d/{}/{}/{}".format, levels, st.sampled_from(["up", "down", "UP", ""]), ends
    )
    return st.one_of(TOPICS, own, st.builds("ef/1/fleet/{}/{}".format, levels, ends))


def nats_matches(subject_filter: str, subject: str) -> bool:
    """Match as the NATS server does: `*` is one token, `>` one or more at the end."""
    wanted, given_tokens = subject_filter.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given_tokens) > index
        if index >= len(given_tokens) or token not in ("*", given_tokens[index]):
            return False
    return len(wanted) == len(given_tokens)


def nats_subject_of(topic: str) -> str:
    """Translate a topic as the NATS server does: a dot is `//`, an empty level a `/`."""
    return ".".join(level.replace(".", "//") or "/" for level in topic.split("/"))


def mosquitto_matches(filter_: str, topic: str) -> bool:
    """Match an MQTT filter by the words of the standard, another way than the policy does."""
    pattern = "/".join(
        "[^/]*" if level == "+" else re.escape(level) for level in filter_.split("/")
    )
    return re.fullmatch(pattern, topic) is not None and not (
        topic.startswith("$") and filter_.startswith("+")
    )


@pytest.mark.parametrize("kind", sorted(UP_KINDS))
def test_a_device_publishes_what_the_protocol_has_it_publish(kind):
    assert policy.of_device("cam-1").may_publish(topics.up("cam-1", kind))


@pytest.mark.parametrize("kind", sorted(DOWN_KINDS))
def test_a_device_reads_what_the_protocol_sends_it(kind):
    assert policy.of_device("cam-1").may_read(topics.down("cam-1", kind))


def test_a_device_reads_metadata_and_blocks_of_the_fleet():
    allowed = policy.of_device("cam-1")
    assert allowed.may_read(topics.fleet_meta("root-1"))
    assert allowed.may_read(topics.fleet_blob("ab" * 32))


@given(DEVICES, DEVICES, st.sampled_from(sorted(UP_KINDS)), st.sampled_from(sorted(DOWN_KINDS)))
def test_no_device_may_anything_on_anothers_topics(device, other, up, down):
    allowed = policy.of_device(device)
    same = device == other
    assert allowed.may_publish(topics.up(other, up)) is same
    assert allowed.may_read(topics.down(other, down)) is same
    assert not allowed.may_publish(topics.down(other, down))
    assert not allowed.may_read(topics.up(other, up))


@given(DEVICES, st.data())
def test_a_device_publishes_under_no_more_names_than_there_are_kinds(device, data):
    topic = data.draw(near_topics(device))
    if policy.of_device(device).may_publish(topic):
        assert topic in {topics.up(device, kind) for kind in UP_KINDS}


@given(DEVICES, st.data())
def test_nobody_may_publish_as_a_device_or_read_for_one_but_itself_and_the_self_test(device, data):
    topic = data.draw(near_topics(device).filter(lambda topic: "hub-" not in topic))
    for name in ("link", "control", "watch"):
        if re.fullmatch(r"ef/1/d/[^/]+/up/[^/]+", topic):
            assert not PARTS[name].may_publish(topic)
        if re.fullmatch(r"ef/1/d/[^/]+/down/[^/]+", topic):
            assert not PARTS[name].may_read(topic)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("topic", ["$SYS/broker/uptime", "$CONTROL/dynamic-security/v1", "$JS/x"])
def test_no_part_may_anything_on_a_brokers_own_topics(name, topic):
    assert not PARTS[name].may_publish(topic)
    assert not PARTS[name].may_read(topic)


@given(DEVICES, st.data())
def test_nats_permissions_say_what_the_policy_says(device, data):
    topic = data.draw(near_topics(device))
    subject = nats_subject_of(topic)
    for allowed in (*PARTS.values(), policy.of_device(device)):
        granted = tickets.permissions(allowed)
        published = any(nats_matches(one, subject) for one in granted.publish)
        read = any(nats_matches(one, subject) for one in granted.subscribe)
        assert (published, read) == (allowed.may_publish(topic), allowed.may_read(topic))


@given(st.dictionaries(DEVICES, st.lists(st.sampled_from("123"), unique=True)), st.data())
def test_the_plugins_roles_say_what_the_policy_says(fleet, data):
    contents = dynsec.wanted(fleet, "l", "c", "w")
    people = {
        dynsec.username("hub", "l"): PARTS["link"],
        dynsec.username("hub", "c"): PARTS["control"],
        dynsec.username("hub", "w"): PARTS["watch"],
    } | {
        dynsec.username(device, serial): policy.of_device(device)
        for device, serials in fleet.items()
        for serial in serials
    }
    assert contents.clients.keys() == people.keys()
    topic = data.draw(near_topics(next(iter(fleet), "a")))
    for name, allowed in people.items():
        rules = {rule for role in contents.clients[name] for rule in contents.roles[role]}
        may = {
            kind
            for kind, filter_ in rules
            if mosquitto_matches(filter_, topic) and not filter_.startswith("$")
        }
        assert ("publishClientSend" in may) is allowed.may_publish(topic)
        assert ("publishClientReceive" in may) is allowed.may_read(topic)
        assert ("subscribePattern" in may) is allowed.may_read(topic)


def test_only_the_control_connection_may_administer_the_plugin():
    contents = dynsec.wanted({"a": {"1"}}, "l", "c", "w")
    administering = {
        name for name, role in contents.roles.items() if any("$" in topic for _, topic in role)
    }
    assert administering == {"control"}


def test_the_plugin_allows_nothing_by_default():
    assert dynsec.wanted({}, "l", "c", "w").defaults == {
        "publishClientSend": False,
        "publishClientReceive": False,
        "subscribe": False,
        "unsubscribe": True,
    }


FLEETS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.frozensets(st.sampled_from("123"), min_size=1)
)


@given(FLEETS, FLEETS, st.data())
def test_commands_bring_any_contents_to_the_wanted_ones_in_the_end_and_at_once_for_who_leaves(
    before, after, data
):
    found, aim = dynsec.wanted(before, "l", "c", "w"), dynsec.wanted(after, "l", "c", "w2")
    if data.draw(st.booleans()):
        found.roles["devices"] = frozenset({("publishClientSend", "#")})
        found.clients["stranger"] = frozenset({"devices"})
        found.groups.add("everyone")
        found.defaults["publishClientReceive"] = True
    commands = list(dynsec.commands(found.copy(), aim))
    taking = [command["command"] in dynsec.TAKING for command in commands]
    assert taking == sorted(taking, reverse=True)
    for command in commands:
        dynsec.apply(found, command)
        if command["command"] == "createClient":
            assert found.clients[command["username"]] <= found.roles.keys()
    assert found == aim
    assert list(dynsec.commands(found, aim)) == []


def test_a_role_that_denies_and_a_client_that_is_disabled_or_in_a_group_are_none_of_ours():
    acl = {"acltype": "publishClientSend", "topic": "x", "allow": False}
    role = {"rolename": "r", "acls": [acl]}
    assert dynsec.read_role(role) == ("r", frozenset({("deny", "x")}))
    for more in ({"disabled": True}, {"groups": [{"groupname": "g"}]}):
        client = {"username": "u", "roles": [{"rolename": "r"}], **more}
        assert dynsec.read_client(client) == ("u", frozenset({"r", ""}))


def test_the_document_reads_back_as_the_contents():
    contents = dynsec.wanted({"a": {"1", "2"}, "b": {"3"}}, "l", "c", "w")
    document = dynsec.document(contents)
    assert dict(map(dynsec.read_role, document["roles"])) == contents.roles
    assert dict(map(dynsec.read_client, document["clients"])) == contents.clients
    assert document["defaultACLAccess"] == contents.defaults


def test_allowed_matches_level_by_level():
    allowed = Allowed(publish=("a/+/c",), read=("+/b",))
    assert allowed.may_publish("a//c")
    assert not allowed.may_publish("a/b/c/d")
    assert not allowed.may_publish("a/b")
    assert allowed.may_read("x/b")
    assert not allowed.may_read("$x/b")
