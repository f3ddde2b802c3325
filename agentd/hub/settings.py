"""What can be set about the hub, each with the reason for its default."""

from __future__ import annotations

import msgspec

from agentd.wire.agentchat import types as wire


class HubSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One hub. A rate or cap of 0 turns that rule off."""

    host: str = "127.0.0.1"  # development mode hands out keys; it must not be reachable from elsewhere
    port: int = 0  # any free one; the hub says which
    database: str = ":memory:"  # a path keeps accounts and mail over restarts of the process
    development: bool = True  # one-time codes come back in the answer, and /hub/v1 is served (to loopback only)

    ack_capability: bool = True  # False: the legacy server, which marks a message delivered when it is written
    echo_own_sends: bool = False  # the platform pushes to others only; True shows a client an echoing server
    hello_timeout_s: float = wire.SERVER_HELLO_TIMEOUT_S
    ping_interval_s: float = wire.SERVER_PING_INTERVAL_S
    pong_timeout_s: float = wire.SERVER_PONG_TIMEOUT_S
    close_timeout_s: float = 2.0  # how long a peer may take to answer a close frame
    unsent_max_bytes: int = wire.UNSENT_MAX_BYTES  # a reader slower than this is closed with 1013
    frame_max_bytes: int = 2_097_152  # no known client sends a larger frame

    drain_page: int = wire.SOCKET_DRAIN_PAGE
    drain_pages_max: int = wire.SOCKET_DRAIN_PAGES_MAX
    drain_pause_s: float = wire.SOCKET_DRAIN_PAUSE_S

    backlog_soft: int = wire.BACKLOG_SOFT
    backlog_hard: int = wire.BACKLOG_HARD
    message_max_bytes: int = wire.MESSAGE_MAX_BYTES
    body_max_bytes: int = 8_388_608  # bulk posts through /hub/v1 are the largest bodies
    attachment_max_bytes: int = wire.ATTACHMENT_MAX_BYTES
    attachment_life_s: float = (
        600.0  # how long an address to store or fetch a file is good: minutes, as on the platform
    )
    cold_rule: bool = True  # one message to a stranger until it answers, as on the platform
    cold_threads_per_day: int = wire.COLD_THREADS_PER_DAY
    sends_per_s: float = wire.SENDS_PER_S
    group_sends_per_s: float = wire.GROUP_SENDS_PER_S
    otp_life_s: float = wire.OTP_LIFE_S

    ack_linger_s: float = 0.01  # acks are written together; a killed hub forgets at most this much and redelivers
    hang_max_s: float = 120.0  # a request that a fault leaves hanging; longer than any client's patience
