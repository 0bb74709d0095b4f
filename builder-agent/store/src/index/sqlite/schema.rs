//! The tables, and the steps that migrate older ones.

/// Version of the tables below.
pub(crate) const SCHEMA: i64 = 5;

// Lists (references, signatures) are in one column: no SQL query reads them, the maps in memory answer
// instead.
const CREATE_1: &str = "
    CREATE TABLE paths (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL,               -- basename
        member TEXT,                      -- who claims it; NULL: Verified
        nar_hash BLOB NOT NULL,
        nar_size INTEGER NOT NULL,
        object_size INTEGER NOT NULL,     -- bytes of the object's file
        refs TEXT NOT NULL,               -- basenames, separated by spaces
        deriver TEXT,
        registration_time INTEGER NOT NULL,
        ultimate INTEGER NOT NULL,
        signatures TEXT NOT NULL,         -- separated by line feeds
        ca TEXT
    ) STRICT;
    CREATE UNIQUE INDEX paths_verified ON paths (path) WHERE member IS NULL;
    CREATE UNIQUE INDEX paths_claimed ON paths (member, path) WHERE member IS NOT NULL;
";

/// Schema 1 becomes 2. Old claims count as unproven, which at worst keeps them Claimed.
const CREATE_2: &str = "
    ALTER TABLE paths ADD COLUMN proven INTEGER NOT NULL DEFAULT 0;  -- content address or trusted signature holds
    CREATE TABLE realisations (
        drv_hash BLOB NOT NULL,
        output TEXT NOT NULL,
        member TEXT,                      -- who claims it; NULL: Verified
        path TEXT NOT NULL,
        signatures TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX realisations_verified ON realisations (drv_hash, output) WHERE member IS NULL;
    CREATE UNIQUE INDEX realisations_claimed ON realisations (member, drv_hash, output) WHERE member IS NOT NULL;
    CREATE TABLE results (
        key BLOB PRIMARY KEY NOT NULL,
        drv TEXT NOT NULL,
        time INTEGER NOT NULL,
        status INTEGER,                   -- NULL: built, or ended at a time limit
        message TEXT NOT NULL,
        log TEXT
    ) STRICT;
    CREATE TABLE result_outputs (
        key BLOB NOT NULL,
        name TEXT NOT NULL,
        path TEXT NOT NULL,
        nar_hash BLOB NOT NULL,
        nar_size INTEGER NOT NULL,
        refs TEXT NOT NULL,
        ca TEXT,
        PRIMARY KEY (key, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE roots (
        member TEXT NOT NULL,
        name TEXT NOT NULL,
        path TEXT NOT NULL,
        PRIMARY KEY (member, name)
    ) STRICT, WITHOUT ROWID;
";

/// Schema 2 becomes 3. The old schema does not say which claims are copies of other members' claims.
/// Therefore no old claim is shown to members who share (see `Origins::from_text`), until it is collected and
/// uploaded again.
const CREATE_3: &str = "
    ALTER TABLE paths ADD COLUMN origins TEXT;  -- whose claims a claim is made of, one a line; NULL: its member's
    UPDATE paths SET origins = '' WHERE member IS NOT NULL;
    CREATE TABLE annotations (
        id INTEGER PRIMARY KEY,           -- the older, the lower
        member TEXT NOT NULL,
        path TEXT NOT NULL,
        nar_hash BLOB NOT NULL,
        deriver TEXT,
        signatures TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX annotations_by_path ON annotations (member, path);
";

/// Schema 3 becomes 4. Nobody knows who brought the old paths, so the box keeps them; they count as used when they came.
const CREATE_4: &str = "
    ALTER TABLE paths ADD COLUMN payer TEXT;   -- who brought a Verified path first; NULL: the box
    ALTER TABLE paths ADD COLUMN used INTEGER NOT NULL DEFAULT 0;  -- last use, milliseconds since 1970
    UPDATE paths SET used = registration_time * 1000;
";

/// Schema 4 becomes 5: results of builds that were ended at a time limit. There were none before.
const CREATE_5: &str = "
    ALTER TABLE results ADD COLUMN silent INTEGER;   -- 1: the limit was on silence, 0: on the whole build
    ALTER TABLE results ADD COLUMN seconds INTEGER;  -- that limit; NULL: the build was not ended at one
";

/// The SQL that migrates a file of schema `found` to ours; `None` if the schema is newer.
pub(super) fn steps(found: i64) -> Option<String> {
    let all = [CREATE_1, CREATE_2, CREATE_3, CREATE_4, CREATE_5];
    let done = usize::try_from(found).ok()?;
    all.get(done..).map(<[&str]>::concat)
}
