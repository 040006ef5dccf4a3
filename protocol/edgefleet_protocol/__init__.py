"""The contract between the edgefleet hub and its devices.

Everything here is values and arithmetic: no socket, no clock, no file. Hub, agent and converters
import it; it imports none of them.
"""

__version__ = "0.1.0"
