"""The network: one WebSocket per identity, and REST calls.

    link.py          one connection: dial, hello, frames in and out, close
    connection.py    the library's connection beneath it: frames by plain calls, pings with a deadline
    rest.py          performs the requests that wire/ describes
    address.py       which URLs a key may be given to, and through which proxy
    tls.py           how a far end proves who it is
    retry_after.py   how long a far end asks us to wait

Always true: TLS certificates are verified; a key leaves this machine over TLS only; no redirect is followed with it.
Not here: what frames and bodies mean (wire/), when to dial or send (core/).
"""
