"""AgentChat's wire: `types` spells it, `platform` says what it means to the daemon."""

from agentd.wire.agentchat.platform import AgentChat

__all__ = ["AgentChat"]
