"""The references in docs/ that follow from the code: `make docs` writes them, and a test sees that they are written.

    configuration.py  every table and key, from agentd/config/settings.py
    control_api.py    every call of the control socket, from agentd/control/api.py
    manual.py         the man page, from the command

Always true: nothing is fetched, and the same code gives the same bytes.
"""
