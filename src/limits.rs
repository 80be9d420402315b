//! Every bound tidelog keeps, in one struct.
//!
//! Nothing in the engine grows without a limit from here. The defaults are [`Limits::DEFAULT`]; an embedder changes
//! them with `DatabaseBuilder::limits`. What happens at a limit is said beside it.

/// Bounds on queues, frames, documents and batches. Sizes are bytes unless the name says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Changes and commands that the writer has or that wait for it. A full queue makes `change` return `Busy` before it
    /// edits. One group's worth: what is taken waits for the group under way and its own at most, however much is offered.
    pub write_queue_items: usize,
    /// Bytes of changes waiting for the writer; as above.
    pub write_queue_bytes: usize,
    /// Records in one commit group. More wait for the next group.
    pub group_records_max: usize,
    /// Payload bytes in one commit group. One larger record travels alone.
    pub group_bytes_max: usize,
    /// One change, as its Automerge chunk. A larger one is refused where it enters.
    pub change_bytes_max: usize,
    /// Operations in one change. A larger one is refused where it enters.
    pub change_ops_max: u64,
    /// One change, inflated. A larger one is refused where it enters.
    pub change_inflated_max: usize,
    /// Authors that one change refers to. More are refused where they enter.
    pub actors_max: u64,
    /// Operations that each byte of a chunk may claim, beside text that is there literally and deletions that the
    /// document has the operations for. A chunk that claims more is refused where it enters.
    pub ops_per_byte: u64,
    /// Operations that a chunk of any length may claim.
    pub ops_free: u64,
    /// One document chunk, compressed. A larger one is refused where it enters.
    pub document_bytes_max: usize,
    /// One document chunk, inflated. A larger one is refused where it enters.
    pub document_inflated_max: u64,
    /// Operations, and changes, in one document chunk. A larger one is refused where it enters.
    pub document_ops_max: u64,
    /// Bytes that each byte of a document chunk may inflate to, beside `inflate_free`. Those of all columns but the values
    /// count twice, since they are held while the chunk is checked.
    pub inflate_ratio_max: u64,
    /// Bytes that a document chunk of any length may inflate to.
    pub inflate_free: u64,
    /// How far above everything known an operation counter may begin, so that a hostile change cannot use it up.
    pub start_op_window: u64,
    /// Changes of one document that wait for a dependency. Beyond it the oldest is dropped and asked for again.
    pub pending_changes_per_document: usize,
    /// Bytes of changes of one document that wait for a dependency; as above.
    pub pending_bytes_per_document: usize,
    /// Bytes of all changes that wait for a dependency; as above.
    pub pending_bytes: usize,
    /// Materialised documents kept in memory. The least recently used are dropped beyond it.
    pub memory_budget: usize,
    /// Materialised documents on which the changes of untrusted peers are tried; as above.
    pub trial_budget: usize,
    /// Materialised documents that rules look at; as above.
    pub consulted_budget: usize,
    /// Peers whose bytes are taken apart or tried at a time. More wait, whoever had least work done going first, and what
    /// they send is read later. The last place is for short turns.
    pub work_at_once: usize,
    /// Microseconds, as claimed, up to which such a turn is short.
    pub work_short_us: u64,
    /// Changes in quarantine because they cannot be applied. Beyond it the oldest is forgotten, and tried again if it
    /// comes again.
    pub quarantine_rows: u64,
    /// Edits that were made here and a node would not have. Beyond it the oldest is forgotten.
    pub rejected_rows: usize,
    /// Refused writes of one principal that the log lists in a minute. The rest is counted.
    pub refusals_per_minute: u32,
    /// Refused changes whose bytes are kept for the operator. Beyond it the oldest are forgotten.
    pub refused_rows: usize,
    /// Bytes of them; as above.
    pub refused_bytes: usize,
    /// Change graphs kept in memory. The least recently used are dropped beyond it.
    pub graph_budget: usize,
    /// Authors listed in a document's row. A document with more reads its change graph to learn its clock.
    pub clock_entries_in_row: usize,
    /// One part of a snapshot or of a streamed chunk.
    pub part_bytes: usize,
    /// One frame on a link, its length prefix not counted. A longer one closes the link.
    pub frame_bytes_max: usize,
    /// One frame before the peer has said who it is.
    pub hello_bytes_max: usize,
    /// Payload bytes that one `ChangeBatch` aims for.
    pub batch_bytes: usize,
    /// `ChangeBatch` frames sent and not yet acknowledged. The sender then stops reading its log for that peer.
    pub batches_in_flight: usize,
    /// Rows in one `Inventory` frame.
    pub inventory_rows: usize,
    /// Documents being exchanged with one peer at a time. Others wait their turn.
    pub exchanges_per_peer: usize,
    /// Streamed chunks a peer may have under way at a time.
    pub bulk_streams_per_peer: usize,
    /// Missing changes of a document above which a peer is sent its snapshot, if there is one.
    pub snapshot_instead_of_changes: u64,
    /// Changes since the last snapshot that make a new one due (or a quarter of the document, if that is more).
    pub snapshot_tail_min: u64,
    /// Bytes of changes since the last snapshot that make a new one due.
    pub snapshot_tail_bytes: u64,
    /// Records between two `checkpoint` records: what an open has to read again.
    pub checkpoint_records: u64,
    /// Free bytes on the disk below which writes are refused with `StorageFull`; reads go on.
    pub disk_free_min: u64,
    /// Nodes and clients connected at a time. Others are refused.
    pub connections_max: usize,
    /// Bytes of automerge-repo clients' messages that are read in part, over all sockets, beside 64 KiB for each. Further
    /// messages wait.
    pub repo_receive_bytes: usize,
    /// One message of an automerge-repo client that has joined. A longer one closes its socket.
    pub repo_message_bytes: usize,
    /// One message of an automerge-repo client before it has joined; as above.
    pub repo_join_bytes: usize,
    /// How deeply such a message may be nested; as above.
    pub repo_depth: usize,
    /// One text in such a message: an id, a name, a reason; as above.
    pub repo_text_bytes: usize,
    /// Items in one list or map of such a message; as above.
    pub repo_list_items: usize,
    /// Bytes of changes that one message to an automerge-repo client aims for, beside a snapshot. More follow in the next
    /// ones; but applications take the first for the whole document, so it is larger than for nodes.
    pub repo_batch_bytes: usize,
    /// Documents that one automerge-repo client may speak of on one socket. One more closes it.
    pub repo_documents: usize,
    /// Bytes of heads and filters kept of one automerge-repo client, over all its documents. More closes its socket.
    pub repo_kept_bytes: usize,
    /// Stores whose heads one automerge-repo client may hear of. Further subscriptions are ignored.
    pub repo_subscriptions: usize,
    /// Heads of stores that are remembered for later subscribers, over all documents. The oldest are forgotten.
    pub repo_remembered_heads: usize,
    /// Data of one ephemeral message. A longer one is not handed on.
    pub repo_ephemeral_bytes: usize,
    /// Ephemeral messages that one client may send in a second, and in one burst. More are not handed on.
    pub repo_ephemeral_rate: u32,
    /// Ephemeral messages, and heads of stores, that wait for one slow socket. The oldest ephemeral message of the author
    /// with the most makes room; of heads, those that came first.
    pub repo_ephemeral_queue: usize,
    /// Bytes of ephemeral messages that wait for one slow socket; as above.
    pub repo_ephemeral_queue_bytes: usize,
    /// Runs of its process that one client's ephemeral messages may name. The oldest are forgotten.
    pub repo_ephemeral_sessions: usize,
}

impl Limits {
    /// What a database has unless it is told otherwise.
    pub const DEFAULT: Self = Self {
        write_queue_items: 1024,
        write_queue_bytes: 64 * MIB,
        group_records_max: 1024,
        group_bytes_max: MIB,
        change_bytes_max: 8 * MIB,
        change_ops_max: 4_000_000,
        change_inflated_max: 8 * MIB,
        actors_max: 1 << 16,
        ops_per_byte: 16,
        ops_free: 1 << 16,
        document_bytes_max: 256 * MIB,
        document_inflated_max: 256 * MIB as u64,
        document_ops_max: 5_000_000,
        inflate_ratio_max: 64,
        inflate_free: 8 * MIB as u64,
        start_op_window: 1 << 20,
        pending_changes_per_document: 1000,
        pending_bytes_per_document: 8 * MIB,
        pending_bytes: 64 * MIB,
        memory_budget: 256 * MIB,
        trial_budget: 64 * MIB,
        consulted_budget: 64 * MIB,
        work_at_once: 4,
        work_short_us: 100_000,
        quarantine_rows: 1024,
        rejected_rows: 4096,
        refusals_per_minute: 60,
        refused_rows: 4096,
        refused_bytes: 32 * MIB,
        graph_budget: 64 * MIB,
        clock_entries_in_row: 64,
        part_bytes: 256 * KIB,
        frame_bytes_max: MIB,
        hello_bytes_max: 4 * KIB,
        batch_bytes: 256 * KIB,
        batches_in_flight: 4,
        inventory_rows: 4096,
        exchanges_per_peer: 32,
        bulk_streams_per_peer: 4,
        snapshot_instead_of_changes: 256,
        snapshot_tail_min: 1024,
        snapshot_tail_bytes: MIB as u64,
        checkpoint_records: 1 << 16,
        disk_free_min: 64 * MIB as u64,
        connections_max: 2048,
        repo_receive_bytes: 256 * MIB,
        repo_message_bytes: 64 * MIB,
        repo_join_bytes: 64 * KIB,
        repo_depth: 64,
        repo_text_bytes: 4 * KIB,
        repo_list_items: 4096,
        repo_batch_bytes: 4 * MIB,
        repo_documents: 1 << 16,
        repo_kept_bytes: 64 * MIB,
        repo_subscriptions: 1024,
        repo_remembered_heads: 1 << 16,
        repo_ephemeral_bytes: MIB,
        repo_ephemeral_rate: 200,
        repo_ephemeral_queue: 512,
        repo_ephemeral_queue_bytes: 4 * MIB,
        repo_ephemeral_sessions: 16,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Bounds of queues between tasks that nobody has a reason to change: each is full for a moment only, and then its
/// sender waits.
#[cfg_attr(not(feature = "node"), allow(dead_code, reason = "most are of rooms that are not there"))]
pub(crate) mod queues {
    /// Events of one link that wait for its session. The stream that brought one is not read meanwhile.
    pub(crate) const LINK_EVENTS: usize = 64;
    /// Batches of one link that wait for the writer. The session then takes no more.
    pub(crate) const LINK_ADMISSIONS: usize = 8;
    /// Frames handed to a stream that are not written yet. The session gives one at a time; the other is its end.
    pub(crate) const STREAM_FRAMES: usize = 2;
    /// Handshakes of strangers under way. More are refused.
    pub(crate) const HANDSHAKES: usize = 1024;
    /// Documents that wait for their snapshot. More are found due again at their next change.
    pub(crate) const SNAPSHOTS: usize = 64;
    /// Commit groups whose documents a listener has not heard of. It then looks at every document it cares for.
    pub(crate) const CHANGED_GROUPS: usize = 1024;
    /// Messages handed on, and heads of stores, that wait for one socket's session. The newest are dropped.
    pub(crate) const SOCKET_NOTICES: usize = 256;
    /// Lines of a command's answer that wait for the admin socket. The command then waits.
    pub(crate) const ADMIN_LINES: usize = 64;
    /// Commands that run on the admin socket at a time. More wait to be accepted.
    pub(crate) const ADMIN_CONNECTIONS: usize = 32;
}

/// Bounds of the HTTP API.
#[cfg(feature = "web")]
pub(crate) mod api {
    /// The body of one request. A longer one is refused.
    pub(crate) const BODY_BYTES_MAX: usize = 16 << 20;
    /// Requests whose bodies are read, or done, at a time. More wait.
    pub(crate) const BODIES: usize = 16;
    /// As many of them for one address, or one user: whoever sends bodies slowly holds up himself.
    pub(crate) const BODIES_EACH: usize = 8;
    /// How long such a request may take, in seconds.
    pub(crate) const BODY_SECONDS: u64 = 30;
    /// Requests that read or write documents at a time. More wait.
    pub(crate) const WORKERS: usize = 4;
    /// As many of them may be feeds that find out what their readers may see: the rest is for everybody else.
    pub(crate) const TELLERS: usize = 3;
    /// As many of those for one address, or one user.
    pub(crate) const TELLERS_EACH: usize = 2;
    /// Documents, or events, in one answer, unless the request says otherwise.
    pub(crate) const PAGE: usize = 100;
    /// As many as it may ask for.
    pub(crate) const PAGE_MAX: usize = 10_000;
    /// How long a long poll waits, in seconds, unless the request says otherwise.
    pub(crate) const POLL_SECONDS: u64 = 25;
    /// As long as it may ask for.
    pub(crate) const POLL_SECONDS_MAX: u64 = 300;
    /// After so many seconds without anything to say, a stream says that it is still there.
    pub(crate) const SILENCE_SECONDS: u64 = 15;
    /// Bytes of lines that a stream sends at once.
    pub(crate) const STREAM_BYTES: usize = 64 << 10;
    /// After so long a stream sends what it has, be it less.
    pub(crate) const STREAM_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);
}

/// Bounds of the bookkeeping of links.
#[cfg(feature = "quic")]
pub(crate) mod links {
    /// Peers of which it is remembered how their last link went. When there are more, those are forgotten that are not
    /// linked, not dialled and not on the list.
    pub(crate) const PEERS_REMEMBERED: usize = 1024;
}

/// Bounds of the bookkeeping of quotas. The quotas themselves are `quota::Quotas`.
#[cfg(feature = "web")]
pub(crate) mod quotas {
    /// Accounts of addresses, and as many of users. When all are in use, those who come share one.
    pub(crate) const ACCOUNTS_MAX: usize = 1 << 15;
    /// Accounts that are looked at, to forget those that count no more, whenever another one is made.
    pub(crate) const ACCOUNTS_SWEPT: usize = 2;
    /// As above, when there are as many as may be.
    pub(crate) const ACCOUNTS_LOOKED_AT: usize = 64;
    /// Tokens remembered that were accepted lately.
    pub(crate) const KNOWN_TOKENS: usize = 1 << 13;
    /// What is owed of a rate beyond its burst, as the time in which it comes back, in milliseconds.
    pub(crate) const DEBT_MS_MAX: u64 = 120_000;
    /// How long whoever has as many at once as he may is told to wait, in milliseconds.
    pub(crate) const AGAIN_MS: u64 = 5_000;
    /// How long a socket is held back that is too fast, in milliseconds. One that would have to wait longer is closed.
    pub(crate) const PATIENCE_MS: u64 = 30_000;
    /// Connections at a time that are told why they are turned away. More are dropped.
    pub(crate) const TOLD_AT_ONCE: usize = 64;
    /// How long such a connection may take, in milliseconds.
    pub(crate) const TOLD_MS: u64 = 1_000;
    /// Bytes of a file of quotas. A longer one is refused.
    pub(crate) const FILE_BYTES_MAX: u64 = 64 << 10;
}

/// Bounds of tokens, and of what proves them.
#[cfg(feature = "web")]
pub(crate) mod tokens {
    /// One token. A longer one is refused unread.
    pub(crate) const TOKEN_BYTES_MAX: usize = 8 << 10;
    /// How deeply its claims may be nested.
    pub(crate) const CLAIMS_DEPTH: usize = 8;
    /// Values in its claims, over all depths. A token with more is refused.
    pub(crate) const CLAIMS_MAX: usize = 512;
    /// Values in its header; as above.
    pub(crate) const HEADER_VALUES_MAX: usize = 32;
    /// The name of a user, in bytes.
    pub(crate) const UID_BYTES_MAX: usize = 200;
    /// The name of a user as the log records it, in bytes.
    pub(crate) const PRINCIPAL_BYTES_MAX: usize = 256;
    /// A role, in bytes.
    pub(crate) const ROLE_BYTES_MAX: usize = 200;
    /// The name of a key, or the id of a token, in bytes.
    pub(crate) const ID_BYTES_MAX: usize = 256;
    /// The shortest life of a token of this node, in milliseconds.
    pub(crate) const TTL_MS_MIN: u64 = 1_000;
    /// Its longest life.
    pub(crate) const TTL_MS_MAX: u64 = 400 * 24 * 3_600_000;
    /// Its life unless it is said otherwise.
    pub(crate) const TTL_MS: u64 = 30 * 24 * 3_600_000;
    /// Tokens that the node lists. Those that have expired make room; beyond it none is issued.
    pub(crate) const ISSUED_MAX: usize = 10_000;
    /// Users, and roles, whose earlier tokens are revoked. Beyond it none is revoked that way.
    pub(crate) const STRUCK_MAX: usize = 10_000;
    /// How long a token stays listed after it has expired, in milliseconds: as far back as the clock may be set while the
    /// node is down, without a revoked token coming back.
    pub(crate) const LISTED_AFTER_MS: u64 = 7 * 24 * 3_600_000;
    /// `tokens.json`. A longer file is none of ours.
    pub(crate) const LIST_BYTES_MAX: u64 = 32 << 20;
    /// The latest time, in seconds since 1970: the year 33658. A claim with a later one is refused.
    pub(crate) const SECONDS_MAX: u64 = 1_000_000_000_000;
    /// How far the clock may step back without a word in the log, in milliseconds.
    pub(crate) const CLOCK_BACK_MS: u64 = 5 * 60_000;
    /// Foreign issuers of one node.
    pub(crate) const ISSUERS_MAX: usize = 16;
    /// The file that names them.
    pub(crate) const ISSUERS_BYTES_MAX: usize = 64 << 10;
    /// How far an issuer's clock may be off, in seconds, unless it is said otherwise.
    pub(crate) const LEEWAY_S: u64 = 60;
    /// The most that can be said.
    pub(crate) const LEEWAY_S_MAX: u64 = 300;
    /// One key set, as it is fetched.
    pub(crate) const KEY_SET_BYTES_MAX: usize = 256 << 10;
    /// Values in its JSON.
    pub(crate) const KEY_SET_VALUES_MAX: usize = 4096;
    /// Keys in it. A set with more is refused.
    pub(crate) const KEYS_MAX: usize = 64;
    /// Keys that are tried on one token.
    pub(crate) const KEYS_TRIED_MAX: usize = 4;
    /// The smallest RSA key, in bits.
    pub(crate) const RSA_BITS_MIN: usize = 2048;
    /// The largest.
    pub(crate) const RSA_BITS_MAX: usize = 8192;
    /// How often a key set in a file is looked at, in milliseconds.
    pub(crate) const FILE_EVERY_MS: u64 = 10_000;
    /// How often a key set at a URL is fetched.
    pub(crate) const URL_EVERY_MS: u64 = 10 * 60_000;
    /// How soon it is fetched again for a key that is not in it, or after a failure.
    pub(crate) const URL_AGAIN_MS: u64 = 30_000;
    /// After so long without a word of a fetch under way, another one is due.
    pub(crate) const FETCH_LOST_MS: u64 = 30_000;
    /// How long a fetch may take.
    #[cfg(feature = "node")]
    pub(crate) const FETCH_MS: u64 = 5_000;
    /// How long keys are used after they were last fetched.
    pub(crate) const KEYS_USED_MS: u64 = 24 * 3_600_000;
}

/// Bounds of queries, their indexes and their listeners.
pub(crate) mod queries {
    /// Conditions in one query.
    pub(crate) const CONDITIONS_MAX: usize = 100;
    /// How deep they may be nested.
    pub(crate) const DEPTH_MAX: usize = 8;
    /// Alternatives of one query, written out.
    pub(crate) const ALTERNATIVES_MAX: usize = 30;
    /// Values of one `in` or `array-contains-any`.
    pub(crate) const VALUES_MAX: usize = 30;
    /// Values of one `not-in`.
    pub(crate) const NOT_IN_MAX: usize = 10;
    /// Bytes of all values of one query, as JSON.
    pub(crate) const VALUE_BYTES_MAX: usize = 64 << 10;
    /// Fields that one query orders by.
    pub(crate) const ORDERINGS_MAX: usize = 8;
    /// Documents in one result. A query with more is refused.
    pub(crate) const LIMIT_MAX: usize = 10_000;
    /// Bytes of documents, as JSON, in one result.
    pub(crate) const RESULT_BYTES_MAX: usize = 64 << 20;
    /// Documents that one query looks at. One that needs more is refused with the index that would help.
    pub(crate) const EXAMINED_MAX: usize = 20_000;
    /// Rows of an index that a count looks at when the index alone answers it.
    pub(crate) const COUNTED_MAX: usize = 1_000_000;
    /// Rows of an index that are counted, to learn which of two narrows more.
    pub(crate) const PROBE: usize = 256;
    /// Documents that a query looked at without an index before one is kept for its fields.
    pub(crate) const LEARN_ABOVE: usize = 500;
    /// Indexes of one collection that queries brought about.
    pub(crate) const LEARNED_MAX: usize = 32;
    /// Indexes of one collection that were declared.
    pub(crate) const DECLARED_MAX: usize = 64;
    /// Fields of one index.
    pub(crate) const PARTS_MAX: usize = 8;
    /// Elements of one list that are indexed one by one.
    pub(crate) const ELEMENTS_MAX: usize = 1_000;
    /// Bytes of JSON up to which a document's value is kept whole.
    pub(crate) const VALUE_KEPT_BYTES: usize = 64 << 10;
    /// Collections that are viewed at a time. Beyond it, the one that was idle longest and has no listeners is put down,
    /// and goes on where it was left when it is queried again.
    pub(crate) const VIEWS_MAX: usize = 256;
    /// Documents taken in at a time while a view or an index is made, before those who wait have their turn.
    pub(crate) const DOCUMENTS_PER_STEP: usize = 256;
    /// Bytes of their JSON; as above.
    pub(crate) const BYTES_PER_STEP: usize = 4 << 20;
    /// Events taken in at a time.
    pub(crate) const EVENTS_PER_STEP: usize = 512;
    /// Rows removed at a time.
    pub(crate) const ROWS_PER_CLEARING: usize = 1024;
    /// How long a request waits for a collection to be read for the first time, in milliseconds.
    #[cfg(feature = "web")]
    pub(crate) const WAIT_MS: u64 = 10_000;
    /// Listeners of one database.
    pub(crate) const LISTENERS_MAX: usize = 100_000;
    /// Documents changed since a position, beyond which a listener begins anew.
    pub(crate) const RESUME_MAX: usize = 10_000;
    /// Results of one database that listeners of the same query share.
    pub(crate) const SHARED_MAX: usize = 64;
    /// Documents in such a result. One with more is found for each listener.
    pub(crate) const SHARED_DOCUMENTS_MAX: usize = 1_000;
    /// Bytes of their JSON; as above.
    pub(crate) const SHARED_BYTES_MAX: usize = 128 << 10;
    /// Documents that a listener with a limit knows beside those in its result: half the limit, and this many.
    pub(crate) const SLACK: usize = 16;
}

/// Bounds of security rules, and of one decision they make.
#[cfg(feature = "web")]
pub(crate) mod rules {
    /// Bytes of one file of rules. A longer one is refused.
    pub(crate) const SOURCE_BYTES_MAX: usize = 256 << 10;
    /// How deep `match` blocks may be nested.
    pub(crate) const MATCH_DEPTH_MAX: usize = 10;
    /// How deep functions may call each other.
    pub(crate) const CALL_DEPTH_MAX: usize = 20;
    /// How deep an expression may be nested as it is written.
    pub(crate) const EXPRESSION_DEPTH_MAX: usize = 64;
    /// How deep it may be nested with the functions it calls, and the values it names, written out.
    pub(crate) const EVALUATION_DEPTH_MAX: usize = 256;
    /// Nodes of all expressions together, with functions written out.
    pub(crate) const NODES_MAX: usize = 50_000;
    /// Nodes of one expression; as above.
    pub(crate) const EXPRESSION_NODES_MAX: usize = 4_000;
    /// Steps of one decision. One that needs more is a denial.
    pub(crate) const STEPS_MAX: u32 = 10_000;
    /// Bytes of text, or of a regular expression's subject, that are one step.
    pub(crate) const BYTES_PER_STEP: usize = 64;
    /// As above, while a regular expression is matched.
    pub(crate) const MATCHED_BYTES_PER_STEP: usize = 16;
    /// Distinct documents that one decision may fetch. One that needs more is a denial.
    pub(crate) const READS_MAX: usize = 10;
    /// How deep a value may be nested that is compared.
    pub(crate) const VALUE_DEPTH_MAX: usize = 64;
    /// Bytes of one regular expression.
    pub(crate) const PATTERN_BYTES_MAX: usize = 1 << 10;
    /// Bytes that it may take compiled.
    pub(crate) const PATTERN_COMPILED_MAX: usize = 256 << 10;
    /// Bytes of its matcher's cache.
    pub(crate) const PATTERN_CACHE_MAX: usize = 256 << 10;
    /// Regular expressions in one file.
    pub(crate) const PATTERNS_MAX: usize = 256;
    /// Problems that are told of one file.
    pub(crate) const PROBLEMS_MAX: usize = 20;
    /// Characters of a value that an explanation shows.
    pub(crate) const SHOWN_CHARACTERS_MAX: usize = 120;
    /// Bytes of one file of cases.
    #[cfg(feature = "node")]
    pub(crate) const CASES_BYTES_MAX: usize = 16 << 20;
}

/// Bounds of the audit trail.
#[cfg_attr(not(feature = "node"), allow(dead_code, reason = "some are of commands"))]
pub(crate) mod audit {
    /// Bytes of refused changes of one principal that are kept in a minute. Beyond it they are listed alone.
    pub(crate) const KEPT_BYTES_PER_MINUTE: usize = 4 << 20;
    /// One refused change that is kept. A longer one is listed alone.
    pub(crate) const KEPT_CHANGE_BYTES_MAX: usize = 512 << 10;
    /// Principals whose minutes are watched at a time. With more, all begin a new one.
    pub(crate) const PRINCIPALS_MAX: usize = 4096;
    /// Refusals that are remembered, so that the same is not listed again. Beyond it the oldest are forgotten.
    pub(crate) const REMEMBERED_MAX: usize = 1 << 14;
    /// Claims of one principal that later records refer to. Beyond it they are written again.
    pub(crate) const CLAIMS_REMEMBERED: usize = 8;
    /// Versions of rules of which is remembered that the log has them. Beyond it they are looked up again.
    pub(crate) const RULES_REMEMBERED: usize = 64;
    /// Principals, with a collection and a kind of write, of whom is remembered which `allow` the log names. Beyond it the
    /// log is told again.
    pub(crate) const ALLOWANCES_REMEMBERED: usize = 1 << 14;
    /// Documents that are kept as they were while decisions are made again.
    pub(crate) const PAST_DOCUMENTS: usize = 512;
    /// Bytes of them.
    pub(crate) const PAST_BYTES: usize = 64 << 20;
    /// Records read at a time.
    pub(crate) const RECORDS_PER_READ: usize = 4096;
    /// Bytes of them.
    pub(crate) const BYTES_PER_READ: usize = 4 << 20;
    /// Rows that one command lists at most.
    pub(crate) const ROWS_MAX: u64 = 10_000;
}

/// Bounds of one change feed.
pub(crate) mod feeds {
    /// Records read from the log at a time; they are told before more are read.
    pub(crate) const RECORDS_PER_READ: usize = 512;
    /// Bytes of them.
    pub(crate) const BYTES_PER_READ: usize = 256 << 10;
    /// Records without anything to tell after which a feed says how far it is.
    pub(crate) const RECORDS_PER_PROGRESS: u64 = 1 << 16;
    /// Documents of which a feed remembers where they stand. Beyond it all are forgotten, and looked up again.
    pub(crate) const DOCUMENTS_REMEMBERED: usize = 1 << 14;
    /// Heads of one document that are remembered; as above.
    pub(crate) const HEADS_REMEMBERED: usize = 64;
    /// Events that a consumer takes in before it writes what it made of them.
    pub(crate) const EVENTS_PER_COMMIT: usize = 512;
    /// Bytes of rows after which it writes them at the next event.
    pub(crate) const BYTES_PER_COMMIT: usize = 1 << 20;
    /// One row of a consumer, without its key. A longer one is refused.
    pub(crate) const ROW_BYTES_MAX: usize = 1 << 20;
    /// The key of such a row; as above.
    pub(crate) const KEY_BYTES_MAX: usize = 1 << 10;
    /// Rows that are removed at a time when a consumer begins anew.
    pub(crate) const ROWS_PER_CLEARING: usize = 1024;
    /// Documents that are told as they stand at a time, over all collections.
    pub(crate) const STANDINGS_PER_READ: usize = 4096;
}

#[cfg(feature = "web")]
pub(crate) mod sifted;

/// Bounds on the search for changes that automerge cannot apply, of a document that could not be made with them.
pub(crate) mod voids {
    /// Such changes that one pass looks for. They are noted, and another pass looks for more.
    pub(crate) const PER_PASS: usize = 64;
    /// Passes before whoever uses the document is told that it cannot be made. The next use goes on from there.
    pub(crate) const PASSES: usize = 16;
    /// Changes that are applied together, and halved when that fails.
    pub(crate) const WINDOW_CHANGES: usize = 1 << 14;
    /// Bytes of chunks of such a group.
    pub(crate) const WINDOW_BYTES: usize = 16 << 20;
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// How the defaults relate. A group that is full still fits a frame's worth of batches, a part fits a frame, and a
// waiting table for one document cannot use up the table for all.
const _: () = {
    let l = Limits::DEFAULT;
    assert!(l.part_bytes + 4 * KIB <= l.frame_bytes_max);
    assert!(l.batch_bytes + l.part_bytes + 64 * KIB <= l.frame_bytes_max);
    assert!(l.hello_bytes_max <= l.frame_bytes_max);
    assert!(l.pending_bytes_per_document <= l.pending_bytes);
    assert!(l.change_bytes_max <= l.pending_bytes_per_document);
    assert!(l.group_bytes_max <= l.write_queue_bytes);
    assert!(l.write_queue_items <= l.group_records_max);
    assert!(l.inventory_rows * 40 <= l.frame_bytes_max);
    assert!(l.change_bytes_max <= l.document_bytes_max);
    assert!(l.repo_join_bytes <= l.repo_message_bytes);
    assert!(l.change_bytes_max <= l.repo_message_bytes);
    assert!(l.repo_message_bytes <= l.repo_receive_bytes);
    assert!(l.repo_ephemeral_bytes <= l.repo_ephemeral_queue_bytes);
    assert!(l.change_ops_max <= l.document_ops_max);
    // A row that holds one is read with a bound of 1 MiB.
    assert!(audit::KEPT_CHANGE_BYTES_MAX + 4 * KIB <= MIB);
    assert!(audit::KEPT_CHANGE_BYTES_MAX <= l.refused_bytes);
};
