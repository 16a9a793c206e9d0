-- What came to the tables of schema.sql after they were frozen. A version that does not know of it can do without (DESIGN §8, "Versions").

-- What `journal discard` gave up: not to be sent to this output, though no row in apart says so. A row goes with its event.
CREATE TABLE IF NOT EXISTS given_up (
  sequence INTEGER NOT NULL,
  output INTEGER NOT NULL,
  PRIMARY KEY (sequence, output)
) STRICT, WITHOUT ROWID;

-- Which parked events are due, in the order of that time.
CREATE INDEX IF NOT EXISTS apart_parked ON apart (output, next_at, sequence) WHERE state = 'parked';
