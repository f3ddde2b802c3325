-- A journal of version 1 with a row in every table.
PRAGMA application_id = 1097294964;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE absence (
    conversation INTEGER PRIMARY KEY REFERENCES conversation,
    ranges       TEXT NOT NULL
) STRICT;
INSERT INTO "absence" VALUES(1,'[[1,2]]');
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
INSERT INTO "attempt" VALUES(1,1,3,1,'ValueError',2.5,0,0,NULL);
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
INSERT INTO "conversation" VALUES(1,1,'conv_a',1,2,3,'msg_3',3,2,'');
CREATE TABLE cursor (
    plugin       INTEGER NOT NULL REFERENCES plugin,
    conversation INTEGER NOT NULL REFERENCES conversation,
    position     INTEGER NOT NULL,
    replay       INTEGER NOT NULL DEFAULT 0,
    until        INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (plugin, conversation)
) STRICT, WITHOUT ROWID;
INSERT INTO "cursor" VALUES(1,1,2,0,0);
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
INSERT INTO "dead" VALUES(1,1,1,2,5,'ValueError','','1',2.5,NULL);
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
INSERT INTO "event" VALUES(1,1,1,2,0,'live',1.5,'msg_2',X'7B22736571223A20327D');
INSERT INTO "event" VALUES(2,1,1,3,0,'live',1.5,'msg_3',X'7B22736571223A20337D');
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
INSERT INTO "gap" VALUES(1,1,1,4,5,1.5,0,0,NULL,'',0,'');
CREATE TABLE identity (
    number    INTEGER PRIMARY KEY,
    name      TEXT NOT NULL UNIQUE,
    platform  TEXT NOT NULL DEFAULT '',
    handle    TEXT NOT NULL DEFAULT '',
    journaled INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO "identity" VALUES(1,'alice','agentchat','@alice',2);
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
INSERT INTO "outbox" VALUES(1,1,'key_1','@bob','{"text":"hi"}','','ready',0,0.0,3.5,3.5,'',NULL,NULL,NULL,9.5,'',NULL,NULL,'','');
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
INSERT INTO "outcome" VALUES(1,1,1,1,2,'answered',X'7B7D',2.5);
CREATE TABLE pause (
    conversation INTEGER PRIMARY KEY REFERENCES conversation,
    at           REAL NOT NULL,
    until        REAL,
    reason       TEXT NOT NULL,
    watchers     INTEGER NOT NULL
) STRICT;
INSERT INTO "pause" VALUES(1,2.5,NULL,'operator',0);
CREATE TABLE plugin (
    number INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE
) STRICT;
INSERT INTO "plugin" VALUES(1,'echo');
CREATE TABLE sealing (
    number  INTEGER PRIMARY KEY,
    salt    BLOB NOT NULL,
    proof   BLOB NOT NULL,
    made_at REAL NOT NULL
) STRICT;
CREATE TABLE state (
    plugin       INTEGER NOT NULL REFERENCES plugin,
    conversation INTEGER NOT NULL,
    key          TEXT NOT NULL,
    value        BLOB NOT NULL,
    PRIMARY KEY (plugin, conversation, key)
) STRICT, WITHOUT ROWID;
INSERT INTO "state" VALUES(1,0,'count',X'32');
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
INSERT INTO "timer" VALUES('agentd-1-t0',1,1,1,'conv_1','',9.5,X'6E756C6C',0,'',0,'',NULL);
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
INSERT INTO "trimmed" VALUES(1,'event',1,3,2,900,'older than 90 days',4.5);
CREATE INDEX event_lane ON event (conversation);
CREATE INDEX gap_open ON gap (number) WHERE outcome = '';
CREATE INDEX gap_absent ON gap (conversation, absent) WHERE absent > 0;
CREATE INDEX outcome_lane ON outcome (plugin, conversation, last);
CREATE INDEX outbox_state ON outbox (identity, state);
COMMIT;
