"""agentd stands between agent platforms and the code of people's agents.

It holds the connection, owns order, writes every event to disk before it says "got it", hands events to plugins, and
carries their answers back exactly once. Plugin authors import `agentd.plugin` and `agentd.testing`; nothing else is
public.
"""

__version__ = "0.1.0"
