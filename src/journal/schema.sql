-- The journal's tables, format 1. Declared once, then frozen: later versions only add (DESIGN §8, "Versions").
-- Moments are microseconds since 1970 UTC. Sequences begin at 1 and are never used twice.

-- Single facts: journal_id, written_by (version), sequence_floor (no sequence up to it is ever given again).
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE accounts (name TEXT PRIMARY KEY, last_accepted_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- What was accepted, as normalize derived it, and the body to the byte. The body stands last, so that a reader of the other
-- columns need not follow its overflow pages. The CRC-32 covers the sequence and every other column.
CREATE TABLE events (
  sequence INTEGER PRIMARY KEY,
  received_at INTEGER NOT NULL,
  account TEXT NOT NULL,
  id BLOB NOT NULL,
  name TEXT NOT NULL,
  subject TEXT,
  time TEXT NOT NULL,
  call_status TEXT,
  opaque INTEGER NOT NULL, -- 1: not JSON that a consumer could parse
  signed_text TEXT NOT NULL,
  signature TEXT NOT NULL,
  replayed INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  body BLOB NOT NULL
) STRICT;

-- What was answered 200, so that the very same request is not forwarded twice: one row per commit and second of signing, the ids of
-- 16 bytes (digests over account and body) one after the other. Inserts stay at the end of the tree and expiry is a range.
CREATE TABLE requests (
  signed_at INTEGER NOT NULL, -- seconds
  sequence INTEGER NOT NULL,  -- of the first of them
  ids BLOB NOT NULL,
  PRIMARY KEY (signed_at, sequence)
) STRICT, WITHOUT ROWID;

-- The place of each output. Every event up to the cursor, of those it owes (spans), is confirmed by the broker or has a row in apart.
-- The five counts are the ledger; each is kept by itself: accepted = published + pending + parked + discarded.
CREATE TABLE outputs (
  number INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  cursor INTEGER NOT NULL,
  removed_at INTEGER, -- null while it is configured
  progress INTEGER NOT NULL DEFAULT 0, -- counts the output's reports, so that none is taken in twice
  routes TEXT NOT NULL, -- by which the lanes in apart were named
  accepted INTEGER NOT NULL DEFAULT 0,
  published INTEGER NOT NULL DEFAULT 0,
  pending INTEGER NOT NULL DEFAULT 0,
  parked INTEGER NOT NULL DEFAULT 0,
  discarded INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Which events an output owes: those after `after` and up to `through` (null: and all that come). A removed output that was put
-- back has more than one.
CREATE TABLE spans (
  output INTEGER NOT NULL,
  after INTEGER NOT NULL,
  through INTEGER,
  PRIMARY KEY (output, after)
) STRICT, WITHOUT ROWID;

-- What stands apart from an output's cursor: held (its topic is faulty, or it was long in flight), parked (the broker will not take it),
-- replay (published, and to be sent again).
CREATE TABLE apart (
  output INTEGER NOT NULL,
  state TEXT NOT NULL,
  lane TEXT NOT NULL, -- the topic or routing key
  sequence INTEGER NOT NULL,
  since INTEGER NOT NULL,
  reason TEXT,
  attempts INTEGER NOT NULL DEFAULT 0,
  next_at INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (output, state, lane, sequence)
) STRICT, WITHOUT ROWID;
CREATE INDEX apart_by_sequence ON apart (sequence, output);

-- What happened to each event, without content: one row when it is published, parked or discarded.
CREATE TABLE trail (
  entry INTEGER PRIMARY KEY,
  at INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  output TEXT, -- null: discarded by configuration, for every output
  state TEXT NOT NULL,
  account TEXT NOT NULL,
  id BLOB NOT NULL,
  name TEXT NOT NULL,
  subject TEXT,
  received_at INTEGER NOT NULL,
  kept_at INTEGER, -- null when the relay was restarted in between
  lane TEXT,
  "partition" INTEGER,
  "offset" INTEGER,
  reason TEXT
) STRICT;

-- What other commands ask of the running relay, or of the next one.
CREATE TABLE orders (
  number INTEGER PRIMARY KEY,
  given_at INTEGER NOT NULL,
  command TEXT NOT NULL,
  output TEXT,
  selection TEXT NOT NULL, -- JSON
  done_at INTEGER,
  result TEXT
) STRICT;
