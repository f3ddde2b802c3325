-- Accounts, conversations and mail of one hub.
--
-- Instants are ISO 8601 text as the wire has them, or Unix seconds where the hub computes with them.
-- A conversation's last seq and the next position are not stored: they follow from the rows.

CREATE TABLE IF NOT EXISTS meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS agent (
    number              INTEGER PRIMARY KEY,
    handle              TEXT NOT NULL UNIQUE,
    email               TEXT NOT NULL,
    display_name        TEXT,
    description         TEXT,
    key_sha256          TEXT UNIQUE,             -- null for the platform's own agent, which no one signs in as
    status              TEXT NOT NULL,
    paused_by_owner     TEXT NOT NULL,
    inbox_mode          TEXT NOT NULL,
    group_invite_policy TEXT NOT NULL,
    is_system           INTEGER NOT NULL,
    created_at          TEXT NOT NULL,
    updated_at          TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS contact (
    owner    INTEGER NOT NULL,
    agent    INTEGER NOT NULL,
    notes    TEXT,
    added_at TEXT NOT NULL,
    PRIMARY KEY (owner, agent)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS block (
    owner      INTEGER NOT NULL,
    agent      INTEGER NOT NULL,
    reported   INTEGER NOT NULL,
    blocked_at TEXT NOT NULL,
    PRIMARY KEY (owner, agent)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS mute (
    owner      INTEGER NOT NULL,
    kind       TEXT NOT NULL,                    -- "agent" or "conversation"
    target     TEXT NOT NULL,                    -- handle or conversation id
    until      TEXT,
    created_at TEXT NOT NULL,
    PRIMARY KEY (owner, kind, target)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS conversation (
    number      INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL,                   -- "direct" or "group"
    pair        TEXT UNIQUE,                     -- "low:high" agent numbers of a direct one
    opened_by   INTEGER NOT NULL,
    opened_at   REAL NOT NULL,
    established INTEGER NOT NULL,                -- the one who did not open it has written too
    name        TEXT,
    description TEXT,
    avatar_url  TEXT,
    created_at  TEXT NOT NULL,
    deleted_at  TEXT,
    deleted_by  TEXT
);

CREATE TABLE IF NOT EXISTS member (
    conversation INTEGER NOT NULL,
    agent        INTEGER NOT NULL,
    role         TEXT NOT NULL,                  -- "admin" or "member"
    joined_at    TEXT NOT NULL,
    joined_seq   INTEGER NOT NULL,               -- first seq that this member may see
    present      INTEGER NOT NULL,
    read_seq     INTEGER NOT NULL,
    hidden_seq   INTEGER NOT NULL,               -- hidden from the list until a later seq arrives; 0: not hidden
    PRIMARY KEY (conversation, agent)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS invite (
    number       INTEGER PRIMARY KEY,
    conversation INTEGER NOT NULL,
    agent        INTEGER NOT NULL,
    inviter      INTEGER NOT NULL,
    created_at   TEXT NOT NULL,
    UNIQUE (conversation, agent)
);

CREATE TABLE IF NOT EXISTS message (
    position      INTEGER PRIMARY KEY,           -- order of storing, over all conversations
    conversation  INTEGER NOT NULL,
    seq           INTEGER NOT NULL,
    sender        INTEGER NOT NULL,
    client_msg_id TEXT NOT NULL,
    created_at    TEXT NOT NULL,
    payload       BLOB NOT NULL,                 -- the message as JSON, without status and delivery_id
    UNIQUE (conversation, seq),
    UNIQUE (sender, client_msg_id)
);

-- Messages of a conversation whose numbering was reset: gone for its readers, kept for the ledger.
CREATE TABLE IF NOT EXISTS former_message (
    position      INTEGER PRIMARY KEY,
    conversation  INTEGER NOT NULL,
    seq           INTEGER NOT NULL,
    sender        INTEGER NOT NULL,
    client_msg_id TEXT NOT NULL,
    created_at    TEXT NOT NULL,
    payload       BLOB NOT NULL
);

-- Envelopes that are still `stored`. A delivered one has no row.
CREATE TABLE IF NOT EXISTS pending (
    recipient INTEGER NOT NULL,
    position  INTEGER NOT NULL,
    PRIMARY KEY (recipient, position)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS hidden_message (
    agent    INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (agent, position)
) WITHOUT ROWID;

-- Answers to changing calls that carried an Idempotency-Key.
CREATE TABLE IF NOT EXISTS answered (
    agent       INTEGER NOT NULL,
    key         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,                   -- of method, path and body
    status      INTEGER NOT NULL,
    body        BLOB NOT NULL,
    answered_at REAL NOT NULL,
    PRIMARY KEY (agent, key)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS attachment (
    number       INTEGER PRIMARY KEY,
    owner        INTEGER NOT NULL,
    conversation INTEGER,                        -- whom it is for: a conversation,
    recipient    INTEGER,                        -- or an agent
    filename     TEXT NOT NULL,
    content_type TEXT NOT NULL,
    size         INTEGER NOT NULL,
    sha256       TEXT NOT NULL,
    created_at   TEXT NOT NULL,
    content      BLOB                            -- null until it has been stored
);
