"""echo: answers every message with its own words. The smallest whole plugin, and what `agentd run` starts with."""

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("echo")

# On every echo, so that two echoes facing each other fall silent after the first.
MARK = "echo"


def is_meant(message: Message) -> bool:
    """Whether somebody speaks to this identity, and is not an echo."""
    from_system = message.kind == "system" or message.context.sender_kind == "system"
    return (message.direct or message.mentioned) and not from_system and MARK not in message.metadata


@plugin.on(Message, where=is_meant)
async def echo(message: Message, ctx: Context) -> None:
    """Say it again. A message without words or data leaves nothing to repeat."""
    if message.text is not None or message.data is not None:
        ctx.reply(message.text, data=message.data, metadata={MARK: True})
