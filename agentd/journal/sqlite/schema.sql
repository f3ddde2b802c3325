-- The journal as it is now. A new file is made from this page; an older one gets here through migrations/.
--
-- Hot tables hold integers: names of identities and plugins are interned, conversations carry our own number.
-- Times are Unix seconds. What belongs to a conversation says so by reference, so that a row nobody could ever read
-- (an event of an unknown conversation) is refused when it is written.

PRAGMA user_version = 1;

-- One account on one platform. journaled: how many events it ever put into the log; counted here because counting the
-- log itself takes longer the longer the daemon has lived.
CREATE TABLE identity (
    number    INTEGER PRIMARY KEY,
    name      TEXT NOT NULL UNIQUE,
    platform  TEXT NOT NULL DEFAULT '',
    handle    TEXT NOT NULL DEFAULT '',
    journaled INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE plugin (
    number INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE
) STRICT;

-- How far a conversation is accounted for. Rewritten once per commit that touches it, so it stays narrow.
-- address: where an answer goes, if that is not its id; '' if it is, or if nobody has spoken yet.
CREATE TABLE conversation (
    number   INTEGER PRIMARY KEY,
    identity INTEGER NOT NULL REFERENCES identity,
    id       TEXT NOT NULL,
    epoch    INTEGER NOT NULL,
    anchor   INTEGER NOT NULL,
    mark     INTEGER NOT NULL,
    mark_id  TEXT NOT NULL,
    top      INTEGER NOT NULL,
    position INTEGER NOT NULL,
    address  TEXT NOT NULL DEFAULT '',
    UNIQUE (identity, id)
) STRICT;

-- The seqs of a conversation that never came, as JSON [[start, stop], ...]. Apart from `conversation` because it may
-- be long and seldom changes, while its conversation changes all the time.
CREATE TABLE absence (
    conversation INTEGER PRIMARY KEY REFERENCES conversation,
    ranges       TEXT NOT NULL
) STRICT;

-- The log, append-only. payload: the bytes as the platform sent them; sender, type and text are read from there. It is
-- empty where retention let it go.
-- There is no index on the platform's id: whoever appends has asked the marks already, which are unique by seq, and a
-- second index over long random text was measured to cost more than all the rest of the row.
CREATE TABLE event (
    position     INTEGER PRIMARY KEY,
    conversation INTEGER NOT NULL REFERENCES conversation,
    epoch        INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    late         INTEGER NOT NULL,
    source       TEXT NOT NULL,
    received_at  REAL NOT NULL,
    id           TEXT NOT NULL,
    payload      BLOB NOT NULL,
    UNIQUE (conversation, epoch, seq)
) STRICT;

-- A lane reads one conversation in the order of positions, which is not the order of seqs once an event came late.
-- The position is in every index by itself, as the row's key.
CREATE INDEX event_lane ON event (conversation);

CREATE TABLE gap (
    number       INTEGER PRIMARY KEY,
    conversation INTEGER NOT NULL REFERENCES conversation,
    epoch        INTEGER NOT NULL,
    start        INTEGER NOT NULL,
    stop         INTEGER NOT NULL,
    found_at     REAL NOT NULL,
    attempts     INTEGER NOT NULL,
    "rows"       INTEGER NOT NULL,
    closed_at    REAL,
    outcome      TEXT NOT NULL,
    absent       INTEGER NOT NULL,
    reason       TEXT NOT NULL
) STRICT;

CREATE INDEX gap_open ON gap (number) WHERE outcome = '';
CREATE INDEX gap_absent ON gap (conversation, absent) WHERE absent > 0;

-- One row per lane: everything up to this position is handled. replay: how often the lane was set back; until: where
-- it stood the last time, so that a second handling of the same event is told from the first.
CREATE TABLE cursor (
    plugin       INTEGER NOT NULL REFERENCES plugin,
    conversation INTEGER NOT NULL REFERENCES conversation,
    position     INTEGER NOT NULL,
    replay       INTEGER NOT NULL DEFAULT 0,
    until        INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (plugin, conversation)
) STRICT, WITHOUT ROWID;

CREATE TABLE attempt (
    plugin       INTEGER NOT NULL REFERENCES plugin,
    conversation INTEGER NOT NULL REFERENCES conversation,
    position     INTEGER NOT NULL,
    count        INTEGER NOT NULL,
    error        TEXT NOT NULL,
    not_before   REAL NOT NULL,
    deaths       INTEGER NOT NULL,
    until        INTEGER NOT NULL,
    progress     BLOB,
    PRIMARY KEY (plugin, conversation, position)
) STRICT, WITHOUT ROWID;

-- What turns came to, where a handler said so, and events that were passed over, with the reason. conversation 0:
-- belongs to none, hence no reference. first, last: positions.
CREATE TABLE outcome (
    number       INTEGER PRIMARY KEY,
    plugin       INTEGER NOT NULL REFERENCES plugin,
    conversation INTEGER NOT NULL,
    first        INTEGER NOT NULL,
    last         INTEGER NOT NULL,
    word         TEXT NOT NULL,
    data         BLOB,
    at           REAL NOT NULL
) STRICT;

CREATE INDEX outcome_lane ON outcome (plugin, conversation, last);

-- Conversations in which no handler runs for the time being. until: null for "until somebody resumes it". watchers:
-- not those of plugins that only watch, either.
CREATE TABLE pause (
    conversation INTEGER PRIMARY KEY REFERENCES conversation,
    at           REAL NOT NULL,
    until        REAL,
    reason       TEXT NOT NULL,
    watchers     INTEGER NOT NULL
) STRICT;

-- One row per delivery that was given up; giving it up again after a replay renews the row. dropped_at: when somebody
-- was through with it.
CREATE TABLE dead (
    number         INTEGER PRIMARY KEY,
    plugin         INTEGER NOT NULL REFERENCES plugin,
    conversation   INTEGER NOT NULL REFERENCES conversation,
    position       INTEGER NOT NULL,
    attempts       INTEGER NOT NULL,
    error          TEXT NOT NULL,
    traceback      TEXT NOT NULL,
    plugin_version TEXT NOT NULL,
    died_at        REAL NOT NULL,
    dropped_at     REAL,
    UNIQUE (plugin, conversation, position)
) STRICT;

-- number: the order of queueing. content: JSON. A settled row stays, since its key is taken for ever; its content is {}
-- where retention let it go.
-- error, code, request_id: why it is not sent, in words and as the platform put it. left_after: where its conversation
-- stood when it left, as JSON [id, epoch, seq], on platforms where it may have to be looked up. caused_in,
-- caused_by: the conversation and the peer whose message it answers, for those that count against the guard against
-- loops.
CREATE TABLE outbox (
    number        INTEGER PRIMARY KEY,
    identity      INTEGER NOT NULL REFERENCES identity,
    client_msg_id TEXT NOT NULL,
    target        TEXT NOT NULL,
    content       TEXT NOT NULL,
    cause         TEXT NOT NULL,
    state         TEXT NOT NULL,
    attempts      INTEGER NOT NULL,
    not_before    REAL NOT NULL,
    queued_at     REAL NOT NULL,
    changed_at    REAL NOT NULL,
    error         TEXT NOT NULL DEFAULT '',
    result_id     TEXT,
    result_seq    INTEGER,
    conversation  TEXT,
    expires_at    REAL,
    code          TEXT NOT NULL DEFAULT '',
    request_id    TEXT,
    left_after    TEXT,
    caused_in     TEXT NOT NULL DEFAULT '',
    caused_by     TEXT NOT NULL DEFAULT '',
    UNIQUE (client_msg_id, identity)
) STRICT;

CREATE INDEX outbox_state ON outbox (identity, state);

-- A plugin's durable values. conversation 0: the plugin's own, hence no reference.
CREATE TABLE state (
    plugin       INTEGER NOT NULL REFERENCES plugin,
    conversation INTEGER NOT NULL,
    key          TEXT NOT NULL,
    value        BLOB NOT NULL,
    PRIMARY KEY (plugin, conversation, key)
) STRICT, WITHOUT ROWID;

-- Wake-ups that plugins asked for. A row goes when its handler has done its work. conversation 0: belongs to none.
-- position: of a recorded event that is delivered out of its order instead, or 0.
CREATE TABLE timer (
    id              TEXT NOT NULL PRIMARY KEY,
    plugin          INTEGER NOT NULL REFERENCES plugin,
    identity        INTEGER NOT NULL REFERENCES identity,
    conversation    INTEGER NOT NULL,
    conversation_id TEXT NOT NULL,
    name            TEXT NOT NULL,
    due_at          REAL NOT NULL,
    data            BLOB NOT NULL,
    failures        INTEGER NOT NULL,
    error           TEXT NOT NULL,
    position        INTEGER NOT NULL,
    again           TEXT NOT NULL,
    progress        BLOB
) STRICT, WITHOUT ROWID;

-- What values are sealed with, one row per process that wrote any: the key of the configuration and this salt give the
-- data key, which proof was encrypted with. made_at: Unix seconds.
CREATE TABLE sealing (
    number  INTEGER PRIMARY KEY,
    salt    BLOB NOT NULL,
    proof   BLOB NOT NULL,
    made_at REAL NOT NULL
) STRICT;

-- What retention let go, one row per run and table: the payloads of events, the contents of settled sends, outcomes.
-- start, stop: half-open, positions or numbers. Events and sends themselves stay, as their ids and keys are taken for
-- ever.
CREATE TABLE trimmed (
    number INTEGER PRIMARY KEY,
    what   TEXT NOT NULL,
    start  INTEGER NOT NULL,
    stop   INTEGER NOT NULL,
    "rows" INTEGER NOT NULL,
    bytes  INTEGER NOT NULL,
    reason TEXT NOT NULL,
    at     REAL NOT NULL
) STRICT;
