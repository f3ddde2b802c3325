"""A development server on AgentChat's wire: the embedded default, the far end of the tests, a place to try plugins.

It judges the daemon from outside: it shares the wire types and the vocabulary with it, nothing else.
"""
