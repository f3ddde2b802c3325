"""The control socket: a local, owner-only door into a running daemon, and the client that knocks on it.

    address.py    where the socket lies
    peer.py       who is on the other end
    refusal.py    what is answered when something cannot be done
    client.py     for the command line; standard library only, since it must start at once
    api.py        for the daemon; its docstring is the protocol

Nothing is imported here, so that a client does not load the server.
"""
