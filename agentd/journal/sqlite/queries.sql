-- Every statement that the journal runs, by name.
--
-- `-- name:` opens a statement, the comment lines under it say what it is for, and the statement goes on to the next
-- name. An insert with `VALUES (?, ...)` is widened to many rows per call (see statements.py).

-- name: identity_numbers
-- The interned names of identities, read once when the journal opens.
SELECT name, number FROM identity;

-- name: identity_add
-- Another writer of the same group may have added it already; asked for again by identity_find.
INSERT INTO identity (name) VALUES (?) ON CONFLICT (name) DO NOTHING;

-- name: identity_find
-- After identity_add, or where a transaction that added it was undone.
SELECT number FROM identity WHERE name = ?;

-- name: identity_account
-- What the platform calls the holder of this identity's key.
UPDATE identity SET platform = ?, handle = ? WHERE number = ?;

-- name: identity_count_events
-- Keeps the count of journaled events beside the log, in the same transaction.
UPDATE identity SET journaled = journaled + ? WHERE number = ?;

-- name: identity_handles
-- The handles that platforms gave.
SELECT name, handle FROM identity WHERE handle <> '';

-- name: identity_totals
-- Journaled events and absent seqs of one identity.
SELECT
    i.journaled,
    (SELECT coalesce(sum(g.absent), 0) FROM gap AS g JOIN conversation AS c ON c.number = g.conversation
      WHERE c.identity = i.number AND g.absent > 0)
  FROM identity AS i
 WHERE i.name = ?;

-- name: plugin_numbers
-- The interned names of plugins, read once when the journal opens.
SELECT name, number FROM plugin;

-- name: plugin_add
-- As identity_add.
INSERT INTO plugin (name) VALUES (?) ON CONFLICT (name) DO NOTHING;

-- name: plugin_find
-- As identity_find.
SELECT number FROM plugin WHERE name = ?;

-- name: conversation_put
-- Hot: one row per conversation in each group. identity and id never change, so their index is not touched.
INSERT INTO conversation (number, identity, id, epoch, anchor, mark, mark_id, top, position, address)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (number) DO UPDATE SET
    epoch = excluded.epoch, anchor = excluded.anchor, mark = excluded.mark, mark_id = excluded.mark_id,
    top = excluded.top, position = excluded.position, address = excluded.address;

-- name: conversation_list
-- All conversations of one identity with their absent ranges.
SELECT c.number, c.id, c.epoch, c.anchor, c.mark, c.mark_id, c.top, c.position, c.address, a.ranges
  FROM conversation AS c LEFT JOIN absence AS a ON a.conversation = c.number
 WHERE c.identity = (SELECT number FROM identity WHERE name = ?)
 ORDER BY c.number;

-- name: conversation_find
-- One conversation by the platform's id.
SELECT c.number, c.id, c.epoch, c.anchor, c.mark, c.mark_id, c.top, c.position, c.address, a.ranges
  FROM conversation AS c LEFT JOIN absence AS a ON a.conversation = c.number
 WHERE c.identity = (SELECT number FROM identity WHERE name = ?) AND c.id = ?;

-- name: conversation_identity
-- Whose it is.
SELECT i.name FROM conversation AS c JOIN identity AS i ON i.number = c.identity WHERE c.number = ?;

-- name: absence_put
-- Only when the ranges differ from what is on disk.
INSERT INTO absence (conversation, ranges) VALUES (?, ?)
ON CONFLICT (conversation) DO UPDATE SET ranges = excluded.ranges;

-- name: absence_list
-- Read once when the journal opens, so that unchanged ranges are never written again.
SELECT conversation, ranges FROM absence;

-- name: event_append
-- Hot: one row per event.
INSERT INTO event (position, conversation, epoch, seq, late, source, received_at, id, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: event_id_at
-- Which message stands at a place; by the unique index.
SELECT id FROM event WHERE conversation = ? AND epoch = ? AND seq = ?;

-- name: event_ids
-- Every platform id of one conversation. Reads all its rows; asked only when a numbering may have been reset.
SELECT id FROM event WHERE conversation = ?;

-- name: event_lane
-- One conversation in the order of delivery, from a position on; without what retention let go.
SELECT e.position, e.conversation, i.name, c.id, e.epoch, e.late, e.source, e.payload, e.received_at
  FROM event AS e
  JOIN conversation AS c ON c.number = e.conversation
  JOIN identity AS i ON i.number = c.identity
 WHERE e.conversation = ? AND e.position > ? AND length(e.payload) > 0
 ORDER BY e.position
 LIMIT ?;

-- name: event_count_behind
-- Answered by the lane's index alone.
SELECT count(*) FROM event WHERE conversation = ? AND position > ?;

-- name: event_count_between
-- As event_count_behind.
SELECT count(*) FROM event WHERE conversation = ? AND position > ? AND position <= ?;

-- name: event_log
-- All conversations in the order of the log. CROSS JOIN fixes the order of the loops: the log leads, so the answer
-- needs no sorting and stops at the limit.
SELECT e.position, e.conversation, i.name, c.id, e.epoch, e.late, e.source, e.payload, e.received_at
  FROM event AS e
 CROSS JOIN conversation AS c ON c.number = e.conversation
 CROSS JOIN identity AS i ON i.number = c.identity
 WHERE e.position > ? AND length(e.payload) > 0
 ORDER BY e.position
 LIMIT ?;

-- name: event_log_of_identity
-- The same for one identity. The positions are found in the lanes' index, so that a quiet identity in a large log does
-- not cost a walk over the log.
SELECT e.position, e.conversation, i.name, c.id, e.epoch, e.late, e.source, e.payload, e.received_at
  FROM event AS e
 CROSS JOIN conversation AS c ON c.number = e.conversation
 CROSS JOIN identity AS i ON i.number = c.identity
 WHERE e.position IN (
        SELECT l.position
          FROM conversation AS m CROSS JOIN event AS l INDEXED BY event_lane ON l.conversation = m.number
         WHERE m.identity = (SELECT number FROM identity WHERE name = ?1) AND l.position > ?2
           AND length(l.payload) > 0
         ORDER BY l.position
         LIMIT ?3)
 ORDER BY e.position;

-- name: event_position_of_seq
-- Where a conversation is at a seq, or first behind it; by the unique index alone. Not every later seq stands behind
-- that: what came late stands where it came.
SELECT min(position) FROM event WHERE conversation = ? AND epoch = ? AND seq >= ?;

-- name: event_received_at
-- When the event at a position was received, or the next one up to another. A step of a search by halves: times of
-- receipt have no index, but rise with the positions, or nearly, where nothing was imported.
SELECT received_at FROM event WHERE position >= ? AND position <= ? ORDER BY position LIMIT 1;

-- name: event_position_since
-- The first event between two positions that was not received before a moment: the end of that search.
SELECT position FROM event WHERE position >= ? AND position <= ? AND received_at >= ? ORDER BY position LIMIT 1;

-- name: event_positions_of
-- A platform id within a stretch of the log, which is read whole: the id has no index.
SELECT position FROM event WHERE position > ? AND position <= ? AND id = ? ORDER BY position;

-- name: last_position
-- The highest position ever given to a record. Marks and cursors are asked too: they outlive old events, and a
-- position that was used again would lie below the cursors and never be handled.
SELECT max(
    (SELECT coalesce(max(position), 0) FROM event),
    (SELECT coalesce(max(position), 0) FROM conversation),
    (SELECT coalesce(max(position), 0) FROM cursor)
);

-- name: last_conversation
-- Numbering goes on from here.
SELECT coalesce(max(number), 0) FROM conversation;

-- name: last_gap
-- Numbering goes on from here.
SELECT coalesce(max(number), 0) FROM gap;

-- name: gap_put
-- A gap as it stands now.
INSERT INTO gap (number, conversation, epoch, start, stop, found_at, attempts, "rows", closed_at, outcome, absent,
    reason)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (number) DO UPDATE SET
    start = excluded.start, stop = excluded.stop, attempts = excluded.attempts, "rows" = excluded."rows",
    closed_at = excluded.closed_at, outcome = excluded.outcome, absent = excluded.absent, reason = excluded.reason;

-- name: gap_list
-- Gaps of one identity (or of all, where ?1 is null), newest first.
SELECT c.id, g.number, g.conversation, g.epoch, g.start, g.stop, g.found_at, g.attempts, g."rows", g.closed_at,
       g.outcome, g.absent, g.reason
  FROM gap AS g
 CROSS JOIN conversation AS c ON c.number = g.conversation
 CROSS JOIN identity AS i ON i.number = c.identity
 WHERE (?1 IS NULL OR i.name = ?1)
 ORDER BY g.number DESC
 LIMIT ?2;

-- name: gap_list_open
-- The same for gaps that are not closed; the index holds only those.
SELECT c.id, g.number, g.conversation, g.epoch, g.start, g.stop, g.found_at, g.attempts, g."rows", g.closed_at,
       g.outcome, g.absent, g.reason
  FROM gap AS g
 CROSS JOIN conversation AS c ON c.number = g.conversation
 CROSS JOIN identity AS i ON i.number = c.identity
 WHERE g.outcome = '' AND (?1 IS NULL OR i.name = ?1)
 ORDER BY g.number DESC
 LIMIT ?2;

-- name: cursor_put
-- Hot: one row per lane that moved.
INSERT INTO cursor (plugin, conversation, position) VALUES (?, ?, ?)
ON CONFLICT (plugin, conversation) DO UPDATE SET position = excluded.position;

-- name: cursor_rewound
-- A lane that is set back has a row already, or gets one.
INSERT INTO cursor (plugin, conversation, position, replay, until) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (plugin, conversation) DO UPDATE SET
    position = excluded.position, replay = excluded.replay, until = excluded.until;

-- name: cursor_list
-- Where each lane of a plugin stands.
SELECT conversation, position FROM cursor WHERE plugin = (SELECT number FROM plugin WHERE name = ?);

-- name: cursor_replays
-- The lanes of a plugin that were ever set back.
SELECT conversation, replay, until FROM cursor
 WHERE plugin = (SELECT number FROM plugin WHERE name = ?) AND replay > 0;

-- name: attempt_put
-- An event that failed again renews its row.
INSERT INTO attempt (plugin, conversation, position, count, error, not_before, deaths, until, progress)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (plugin, conversation, position) DO UPDATE SET
    count = excluded.count, error = excluded.error, not_before = excluded.not_before, deaths = excluded.deaths,
    until = excluded.until, progress = excluded.progress;

-- name: attempt_clear
-- A cursor has passed them.
DELETE FROM attempt WHERE plugin = ? AND conversation = ? AND position <= ?;

-- name: attempt_lanes
-- The lanes that have failed events, read once when the journal opens.
SELECT plugin, conversation, max(position) FROM attempt GROUP BY plugin, conversation;

-- name: attempt_list
-- Failed events of one plugin.
SELECT a.plugin, p.name, a.conversation, a.position, a.count, a.error, a.not_before, a.deaths, a.until, a.progress
  FROM attempt AS a JOIN plugin AS p ON p.number = a.plugin
 WHERE p.name = ?
 ORDER BY a.conversation, a.position;

-- name: outcome_add
-- What a turn came to, or why events were passed over.
INSERT INTO outcome (plugin, conversation, first, last, word, data, at) VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: outcome_list
-- What became of one recorded event with a plugin, oldest first.
SELECT o.plugin, p.name, o.conversation, o.first, o.last, o.word, o.data, o.at
  FROM outcome AS o JOIN plugin AS p ON p.number = o.plugin
 WHERE p.name = ? AND o.conversation = ? AND o.last >= ?3 AND o.first <= ?3
 ORDER BY o.number;

-- name: pause_put
-- A conversation that is paused again has the newer end and reason.
INSERT INTO pause (conversation, at, until, reason, watchers) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (conversation) DO UPDATE SET
    at = excluded.at, until = excluded.until, reason = excluded.reason, watchers = excluded.watchers;

-- name: pause_delete
-- Handlers run in it again.
DELETE FROM pause WHERE conversation = ?;

-- name: pause_list
-- All of them, read once at start.
SELECT p.conversation, i.name, c.id, p.at, p.until, p.reason, p.watchers
  FROM pause AS p
  JOIN conversation AS c ON c.number = p.conversation
  JOIN identity AS i ON i.number = c.identity
 ORDER BY p.at;

-- name: dead_put
-- A delivery that dies again renews its row.
INSERT INTO dead (plugin, conversation, position, attempts, error, traceback, plugin_version, died_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (plugin, conversation, position) DO UPDATE SET
    attempts = excluded.attempts, error = excluded.error, traceback = excluded.traceback,
    plugin_version = excluded.plugin_version, died_at = excluded.died_at, dropped_at = NULL;

-- name: dead_listed
-- Whether a delivery is on the list of dead letters.
SELECT 1 FROM dead WHERE plugin = ? AND conversation = ? AND position = ? AND dropped_at IS NULL;

-- name: dead_standing
-- Whose a dead letter is, and whether somebody is through with it.
SELECT conversation, dropped_at FROM dead WHERE number = ?;

-- name: dead_counts
-- Dead letters on the list of each identity, read once when the journal opens.
SELECT i.name, count(*)
  FROM dead AS d
  JOIN conversation AS c ON c.number = d.conversation
  JOIN identity AS i ON i.number = c.identity
 WHERE d.dropped_at IS NULL
 GROUP BY i.number;

-- name: dead_count
-- The same for one identity, where a broken commit left it in doubt.
SELECT count(*)
  FROM dead AS d
  JOIN conversation AS c ON c.number = d.conversation
 WHERE d.dropped_at IS NULL AND c.identity = (SELECT number FROM identity WHERE name = ?);

-- name: dead_dropped
-- Somebody is through with it.
UPDATE dead SET dropped_at = ? WHERE number = ?;

-- name: dead_emptied
-- What dropped letters tell of events that were let go: it may quote them.
UPDATE dead SET error = '', traceback = '' WHERE position IN (SELECT value FROM json_each(?));

-- name: dead_list
-- Dead letters of one identity (or of all, where ?1 is null), newest first; those that were dropped if ?3.
SELECT p.name, d.conversation, d.position, d.attempts, d.error, d.traceback, d.plugin_version, d.died_at,
       d.number, i.name, c.id, d.dropped_at, d.plugin
  FROM dead AS d
  JOIN plugin AS p ON p.number = d.plugin
  JOIN conversation AS c ON c.number = d.conversation
  JOIN identity AS i ON i.number = c.identity
 WHERE (?1 IS NULL OR i.name = ?1) AND (?3 OR d.dropped_at IS NULL)
 ORDER BY d.died_at DESC, d.number DESC
 LIMIT ?2;

-- name: dead_find
-- One dead letter.
SELECT p.name, d.conversation, d.position, d.attempts, d.error, d.traceback, d.plugin_version, d.died_at,
       d.number, i.name, c.id, d.dropped_at, d.plugin
  FROM dead AS d
  JOIN plugin AS p ON p.number = d.plugin
  JOIN conversation AS c ON c.number = d.conversation
  JOIN identity AS i ON i.number = c.identity
 WHERE d.number = ?;

-- name: dead_at
-- The dead letters of one event, one for each plugin that gave it up.
SELECT p.name, d.conversation, d.position, d.attempts, d.error, d.traceback, d.plugin_version, d.died_at,
       d.number, i.name, c.id, d.dropped_at, d.plugin
  FROM dead AS d
  JOIN plugin AS p ON p.number = d.plugin
  JOIN conversation AS c ON c.number = d.conversation
  JOIN identity AS i ON i.number = c.identity
 WHERE d.conversation = ? AND d.position = ?;

-- name: outbox_queue
-- The first text under a key stands, whatever a rerun would have written.
INSERT INTO outbox (identity, client_msg_id, target, content, cause, state, attempts, not_before, expires_at,
    caused_in, caused_by, queued_at, changed_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (client_msg_id, identity) DO NOTHING;

-- name: outbox_carried
-- What became of a send.
UPDATE outbox
   SET state = ?, attempts = ?, not_before = ?, result_id = ?, result_seq = ?, conversation = ?, error = ?,
       changed_at = ?, code = ?, request_id = ?, left_after = ?
 WHERE client_msg_id = ? AND identity = ?;

-- name: outbox_answers
-- Sends that messages of peers caused, among the newest rows: read once at start, for the guard against loops.
SELECT caused_in, caused_by, queued_at
  FROM outbox
 WHERE number > (SELECT coalesce(max(number), 0) - 100000 FROM outbox)
   AND identity = (SELECT number FROM identity WHERE name = ?) AND queued_at > ? AND caused_by <> ''
 ORDER BY number;

-- name: outbox_conversation_with
-- The conversation in which the newest send to a handle arrived; among the newest rows only, since targets have no
-- index.
SELECT conversation
  FROM outbox
 WHERE number > (SELECT coalesce(max(number), 0) - 100000 FROM outbox)
   AND identity = (SELECT number FROM identity WHERE name = ?) AND lower(target) = lower(?) AND conversation IS NOT NULL
 ORDER BY number DESC
 LIMIT 1;

-- name: outbox_retried
-- Why it was not sent stays readable until there is other news.
UPDATE outbox SET state = 'ready', not_before = 0, expires_at = NULL, changed_at = ?
 WHERE client_msg_id = ? AND identity = ?;

-- name: outbox_open
-- What the sender still has to settle, in the order of queueing.
SELECT i.name, o.target, o.content, o.client_msg_id, o.cause, o.attempts, o.not_before, o.state, o.expires_at,
       o.left_after, o.caused_in, o.caused_by
  FROM outbox AS o JOIN identity AS i ON i.number = o.identity
 WHERE i.name = ? AND o.state IN ('ready', 'sending', 'unknown')
 ORDER BY o.number;

-- name: outbox_find
-- The send under a key, with what became of it.
SELECT i.name, o.target, o.content, o.client_msg_id, o.cause, o.attempts, o.not_before, o.state, o.expires_at,
       o.left_after, o.caused_in, o.caused_by, o.error, o.queued_at, o.result_id, o.result_seq, o.conversation,
       o.changed_at, o.code, o.request_id
  FROM outbox AS o JOIN identity AS i ON i.number = o.identity
 WHERE o.client_msg_id = ? AND i.name = ?;

-- name: outbox_list
-- Sends of one identity in any of the states of a JSON array, newest first.
SELECT i.name, o.target, o.content, o.client_msg_id, o.cause, o.attempts, o.not_before, o.state, o.expires_at,
       o.left_after, o.caused_in, o.caused_by, o.error, o.queued_at, o.result_id, o.result_seq, o.conversation,
       o.changed_at, o.code, o.request_id
  FROM outbox AS o JOIN identity AS i ON i.number = o.identity
 WHERE i.name = ? AND o.state IN (SELECT value FROM json_each(?))
 ORDER BY o.number DESC
 LIMIT ?;

-- name: outbox_totals
-- Answered by the index on (identity, state) alone.
SELECT state, count(*) FROM outbox WHERE identity = (SELECT number FROM identity WHERE name = ?) GROUP BY state;

-- name: state_put
-- A plugin's value, new or changed.
INSERT INTO state (plugin, conversation, key, value) VALUES (?, ?, ?, ?)
ON CONFLICT (plugin, conversation, key) DO UPDATE SET value = excluded.value;

-- name: state_delete
-- A value that was removed.
DELETE FROM state WHERE plugin = ? AND conversation = ? AND key = ?;

-- name: state_get
-- One value.
SELECT value, plugin FROM state
 WHERE plugin = (SELECT number FROM plugin WHERE name = ?) AND conversation = ? AND key = ?;

-- name: state_keys
-- What a plugin keeps that belongs to no conversation.
SELECT key FROM state WHERE plugin = (SELECT number FROM plugin WHERE name = ?) AND conversation = 0;

-- name: state_sizes
-- Bytes of keys and values per plugin, read once when the journal opens.
SELECT p.name, sum(length(CAST(s.key AS BLOB)) + length(s.value))
  FROM state AS s JOIN plugin AS p ON p.number = s.plugin
 GROUP BY s.plugin;

-- name: state_size
-- The same for one plugin, where a broken commit left it in doubt.
SELECT coalesce(sum(length(CAST(s.key AS BLOB)) + length(s.value)), 0)
  FROM state AS s
 WHERE s.plugin = (SELECT number FROM plugin WHERE name = ?);

-- name: state_replaced
-- Bytes per plugin of what is about to be put anew or removed. CROSS JOIN: each place is found by the primary key.
SELECT s.plugin, sum(length(CAST(s.key AS BLOB)) + length(s.value))
  FROM (VALUES (?, ?, ?)) AS place
 CROSS JOIN state AS s
         ON s.plugin = place.column1 AND s.conversation = place.column2 AND s.key = place.column3
 GROUP BY s.plugin;

-- name: timer_put
-- A timer that failed, or recurs, renews its row.
INSERT INTO timer (id, plugin, identity, conversation, conversation_id, name, due_at, data, failures, error, position,
    again, progress)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    due_at = excluded.due_at, data = excluded.data, failures = excluded.failures, error = excluded.error,
    position = excluded.position, again = excluded.again, progress = excluded.progress;

-- name: timer_delete
-- It has fired.
DELETE FROM timer WHERE id = ?;

-- name: timer_list
-- A plugin's timers, read once at start.
SELECT t.id, p.name, i.name, t.conversation, t.conversation_id, t.name, t.due_at, t.data, t.failures, t.error,
       t.position, t.again, t.progress
  FROM timer AS t
  JOIN plugin AS p ON p.number = t.plugin
  JOIN identity AS i ON i.number = t.identity
 WHERE p.name = ?
 ORDER BY t.due_at, t.id;

-- name: sealing_list
-- What values are sealed with, the oldest first.
SELECT number, salt, proof FROM sealing ORDER BY number;

-- name: sealing_add
-- Another process begins to write.
INSERT INTO sealing (number, salt, proof, made_at) VALUES (?, ?, ?, ?);

-- name: sealing_forget
-- Nothing is sealed with those any more.
DELETE FROM sealing WHERE number NOT IN (SELECT value FROM json_each(?));

-- name: trimmable_event
-- Events of a stretch of the log whose payload nobody needs any more: older than ?3, not empty yet, and passed by every
-- plugin that ever subscribed to their identity, whose subscription's position stands for a cursor that it has not yet
-- (?4: JSON array of plugins that are not waited for; ?5: whose state the subscriptions are). Never what a failed
-- attempt, a late delivery or a dead letter refers to, nor anything in a conversation with an open gap.
SELECT e.position, length(e.payload), e.received_at
  FROM event AS e
 WHERE e.position > ?1 AND e.position <= ?2 AND e.received_at < ?3 AND length(e.payload) > 0
   AND e.position NOT IN (SELECT position FROM attempt)
   AND e.position NOT IN (SELECT position FROM timer WHERE position > 0)
   AND e.position NOT IN (SELECT position FROM dead WHERE dropped_at IS NULL)
   AND e.conversation NOT IN (SELECT conversation FROM gap WHERE outcome = '')
   AND NOT EXISTS (
        SELECT 1
          FROM conversation AS c
         CROSS JOIN identity AS i ON i.number = c.identity
         CROSS JOIN state AS s
            ON s.plugin = (SELECT number FROM plugin WHERE name = ?5) AND s.conversation = 0
           AND s.key > i.name || '/' AND s.key < i.name || '0'
          LEFT JOIN plugin AS p ON p.name = substr(s.key, length(i.name) + 2)
          LEFT JOIN cursor AS k ON k.plugin = p.number AND k.conversation = c.number
         WHERE c.number = e.conversation
           AND coalesce(k.position, CAST(s.value AS INTEGER)) < e.position
           AND substr(s.key, length(i.name) + 2) NOT IN (SELECT value FROM json_each(?4)))
 ORDER BY e.position;

-- name: trimmed_event
-- What stays of an event: its id tells a repeat from news, and what was handled before a reset from what was not.
SELECT position, conversation, epoch, seq, late, source, received_at, id, x''
  FROM event
 WHERE position IN (SELECT value FROM json_each(?));

-- name: event_remove
-- To be put back without its payload. An UPDATE would leave its page as empty as it became; a row that is removed lets
-- half-empty pages be joined.
DELETE FROM event WHERE position IN (SELECT value FROM json_each(?));

-- name: trimmable_outbox
-- Settled sends of a stretch of the outbox that are older than ?3 and still have their content. ?4, ?5: not used here.
SELECT number, length(content), changed_at
  FROM outbox
 WHERE number > ?1 AND number <= ?2 AND changed_at < ?3 AND length(content) > 2
   AND state IN ('sent', 'refused', 'expired', 'dropped') AND ?4 IS NOT NULL AND ?5 IS NOT NULL
 ORDER BY number;

-- name: trimmed_outbox
-- What stays of a send: its key is taken for ever, and a repeated turn reads the platform's answer here.
SELECT number, identity, client_msg_id, target, '{}', cause, state, attempts, not_before, queued_at, changed_at, error,
       result_id, result_seq, conversation, expires_at, code, request_id, left_after, caused_in, caused_by
  FROM outbox
 WHERE number IN (SELECT value FROM json_each(?));

-- name: outbox_remove
-- As event_remove.
DELETE FROM outbox WHERE number IN (SELECT value FROM json_each(?));

-- name: outbox_put_back
-- As it was, under its number.
INSERT INTO outbox (number, identity, client_msg_id, target, content, cause, state, attempts, not_before, queued_at,
    changed_at, error, result_id, result_seq, conversation, expires_at, code, request_id, left_after,
    caused_in, caused_by)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: trimmed_put
-- A run that goes on adds to its row.
INSERT INTO trimmed (number, what, start, stop, "rows", bytes, reason, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (number) DO UPDATE SET
    start = min(start, excluded.start), stop = max(stop, excluded.stop), "rows" = "rows" + excluded."rows",
    bytes = bytes + excluded.bytes, at = excluded.at;

-- name: trimmed_list
-- What was let go, the last run first.
SELECT number, what, start, stop, "rows", bytes, reason, at FROM trimmed ORDER BY number DESC LIMIT ?;

-- name: trimmed_last
-- Numbering goes on from here.
SELECT coalesce(max(number), 0) FROM trimmed;

-- name: event_newest_in
-- When the last event of a stretch of the log came; null if there is none.
SELECT max(received_at) FROM event WHERE position > ? AND position <= ?;

-- name: trimmable_outcome
-- What turns came to, for people to read, and old. ?4, ?5: not used here.
SELECT number, length(word) + coalesce(length(data), 0), at
  FROM outcome
 WHERE number > ?1 AND number <= ?2 AND at < ?3 AND ?4 IS NOT NULL AND ?5 IS NOT NULL
 ORDER BY number;

-- name: outcome_remove
-- Nothing refers to them.
DELETE FROM outcome WHERE number IN (SELECT value FROM json_each(?));

-- name: outcome_last
-- The highest number that is there.
SELECT coalesce(max(number), 0) FROM outcome;

-- name: outbox_last
-- The highest number ever given to a send.
SELECT coalesce(max(number), 0) FROM outbox;
