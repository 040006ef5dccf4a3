"""The hub's edges to devices: the embedded MQTT broker and the link that speaks through it."""
