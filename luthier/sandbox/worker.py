"""The child process that runs queries: `python -I -S worker.py LIMITS`, an object of JSON as in `Limits`.

It imports the standard library alone, and this file is run by its path, so that a new worker stands in a few hundredths of a
second. It says `{"ready": true}` first, when it is confined and has run a query. Requests and answers are JSON, each behind
its length in 8 bytes: `{"database", "sql", "rows", "cut", "seconds"}` on standard input (without `sql` it asks for the
tables), on standard output `{"columns", "rows", "seconds", "cut"}` or `{"kind", "error"}`. It ends when standard input does.

What keeps a query inside, from the outermost: the parent kills a worker that does not answer; the system lets the process
write no byte to any file (RLIMIT_FSIZE 0), take no more memory and processor time than it is given, and start no process; the
database is opened read-only and immutable, without temporary files; SQLite asks `authorize` about everything a statement does
before it runs, and what is not on the list is refused; its own limits bound texts, memory and depth.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import sqlite3
import sys
import time
from typing import Any, BinaryIO
from urllib.parse import quote

# what the process needs beside SQLite's memory: the interpreter, the rows as Python values and as JSON
PROCESS_BYTES = 768 << 20
OPCODES_BETWEEN_CLOCKS = 20_000
CELL_BYTES = 8  # of a number; of a text or a blob, what comes to its length
READY = {"ready": True}
TOO_MUCH_MEMORY = {"kind": "memory", "error": "more memory than it may take"}
# limits that a system other than Linux may not know for a process that is larger already (macOS: addresses)
OPTIONAL_LIMITS = frozenset({"RLIMIT_AS"})
# functions that read and compute only; all others are refused: load_extension, fts3_tokenizer, readfile, writefile, edit, ...
FUNCTION_NAMES = """
abs acos acosh asin asinh atan atan2 atanh avg ceil ceiling changes char coalesce concat concat_ws cos cosh count cume_dist
current_date current_time current_timestamp date datetime degrees dense_rank exp first_value floor format glob
group_concat hex if ifnull iif instr json json_array json_array_insert json_array_length json_each json_error_position
json_extract json_group_array json_group_object json_insert json_object json_patch json_pretty json_quote json_remove
json_replace json_set json_tree json_type json_valid jsonb jsonb_array jsonb_array_insert jsonb_each jsonb_extract
jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove jsonb_replace jsonb_set jsonb_tree
julianday lag last_insert_rowid last_value lead length like likelihood likely ln log log10 log2 lower ltrim match max
median min mod nth_value ntile nullif octet_length percent_rank percentile percentile_cont percentile_disc pi pow power
printf quote radians random
randomblob rank replace round row_number rtrim sign sin sinh soundex sqlite_version sqrt strftime string_agg substr
substring subtype sum tan tanh time timediff total total_changes trim trunc typeof unhex unicode unistr unistr_quote unixepoch
unlikely upper zeroblob -> ->>
"""
FUNCTIONS = frozenset(FUNCTION_NAMES.split())
# tables of SQLite's own that describe the database; others (dbstat, sqlite_stmt, ...) are refused
DESCRIPTIONS = frozenset(
    {"sqlite_master", "sqlite_schema", "sqlite_temp_master", "sqlite_temp_schema", "sqlite_sequence"}
)
TABLE_FUNCTIONS = frozenset({"json_each", "json_tree", "jsonb_each", "jsonb_tree"})  # those of jsonb since SQLite 3.51
# such as there may be in an SQLite that does not list what it has
MODULES = ("bytecode", "dbstat", "fts3tokenize", "sqlite_dbpage", "sqlite_stmt", "tables_used", "pragma_database_list")
HIDDEN = 1  # what PRAGMA table_xinfo says of a virtual table's columns that `*` leaves out; generated ones are 2 and 3


class RefusedError(Exception):
    """A query that is stopped before or while it runs. `kind` is rows, bytes or sql."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        super().__init__(text)


def confine(limits: dict[str, Any]) -> None:
    """Take from this process what it does not need. Irrevocable."""
    memory = limits["memory_bytes"] + PROCESS_BYTES
    for name, value in {
        "RLIMIT_AS": memory,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 32,
        "RLIMIT_NPROC": 0,
    }.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)  # what this process was given may be less already
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            if name not in OPTIONAL_LIMITS or sys.platform == "linux":
                raise


class Guard:
    """What SQLite asks before and while a statement runs, and why it was told no."""

    def __init__(self) -> None:
        self.refusal = ""
        self.deadline = float("inf")
        self.tables: frozenset[str] = frozenset()
        self.modules: frozenset[str] = frozenset()

    def authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, inner: str | None
    ) -> int:
        """Deny by default. SQLite calls it for each thing that a statement would do, while it compiles it."""
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() in FUNCTIONS:
                return sqlite3.SQLITE_OK
            return self._deny(f"the function {second}")
        if action == sqlite3.SQLITE_READ:
            name = (first or "").lower()
            if name in self.tables or name in DESCRIPTIONS or name in TABLE_FUNCTIONS:
                return sqlite3.SQLITE_OK
            # no column of it is read: a name that WITH gave, of which only the rows are counted
            if second == "" and name not in self.modules:
                return sqlite3.SQLITE_OK
            return self._deny(f"the table {first}")
        if (first or "").lower() in DESCRIPTIONS:
            return self._deny("a change of the schema, a virtual table, or a table of SQLite's own")
        return self._deny(ACTIONS.get(action, f"action {action}"))

    def _deny(self, what: str) -> int:
        self.refusal = self.refusal or what
        return sqlite3.SQLITE_DENY

    def late(self) -> int:
        """Called between opcodes; 1 ends the statement."""
        return int(time.monotonic() > self.deadline)


ACTIONS = {
    value: name.removeprefix("SQLITE_").replace("_", " ")
    for name, value in vars(sqlite3).items()
    if name.startswith(("SQLITE_CREATE", "SQLITE_DROP", "SQLITE_ALTER"))
    or name in {
        "SQLITE_ANALYZE", "SQLITE_ATTACH", "SQLITE_DELETE", "SQLITE_DETACH", "SQLITE_INSERT", "SQLITE_PRAGMA",
        "SQLITE_REINDEX", "SQLITE_SAVEPOINT", "SQLITE_TRANSACTION", "SQLITE_UPDATE",
    }
}  # fmt: skip


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def open_database(path: str, limits: dict[str, Any], guard: Guard) -> sqlite3.Connection:
    """A connection that can only read, its limits set, the guard in place."""
    address = f"file:{quote(path)}?mode=ro&immutable=1"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, cached_statements=0)
    connection.text_factory = lambda content: content.decode(errors="ignore")
    for pragma in (
        f"hard_heap_limit={limits['memory_bytes']}",
        "temp_store=MEMORY",
        "mmap_size=0",
        "trusted_schema=OFF",
        "cell_size_check=ON",
        "query_only=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    for query in ("SELECT * FROM json_each('[]'), json_tree('[]')", "SELECT * FROM jsonb_each('[]'), jsonb_tree('[]')"):
        with contextlib.suppress(sqlite3.OperationalError):  # an SQLite that was built without, or is older
            # these are declared as tables when they are first read, which the guard would refuse
            connection.execute(query).fetchall()
    guard.modules = modules_of(connection)
    guard.tables = frozenset(
        name.lower() for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    )
    for category, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, limits["cell_bytes"]),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, limits["sql_bytes"]),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
        (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (sqlite3.SQLITE_LIMIT_VDBE_OP, 1_000_000),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
    ):
        connection.setlimit(category, value)
    connection.set_authorizer(guard.authorize)
    connection.set_progress_handler(guard.late, OPCODES_BETWEEN_CLOCKS)
    return connection


def modules_of(connection: sqlite3.Connection) -> frozenset[str]:
    """What can be read like a table without being one of the database's, by its name; `sqlite_master` is none."""
    modules = [name for (name,) in connection.execute("PRAGMA module_list")]
    pragmas = [f"pragma_{name}" for (name,) in connection.execute("PRAGMA pragma_list")]
    return frozenset(name.lower() for name in (*modules, *pragmas, *MODULES))


def columns_of(connection: sqlite3.Connection, guard: Guard) -> list[tuple[str, str]]:
    """(table, column), in order; left out are views, the tables in which a virtual one keeps what it holds, and virtual
    ones whose module is not there, so that nothing can read them."""
    connection.set_authorizer(None)
    guard.deadline = float("inf")
    try:
        inner = {row[1] for row in connection.execute("PRAGMA table_list") if row[2] == "shadow"}
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = []
        for table in tables:
            try:
                columns = connection.execute(f"PRAGMA table_xinfo({quoted(table)})").fetchall()
            except sqlite3.OperationalError as error:
                if "no such module" not in str(error):
                    raise
            else:
                found += [(table, row[1]) for row in columns if row[6] != HIDDEN and table not in inner]
        return found
    finally:
        connection.set_authorizer(guard.authorize)


def size_of(cell: object) -> int:
    """Its bytes, or characters; an empty one takes memory, too."""
    return CELL_BYTES + len(cell) if isinstance(cell, (str, bytes)) else CELL_BYTES


def run(
    connection: sqlite3.Connection, guard: Guard, request: dict[str, Any], limits: dict[str, Any]
) -> dict[str, Any]:
    """One query's columns and rows.

    Raises:
        RefusedError: it met a limit.
        sqlite3.Error: SQLite refused it, or the guard did.
    """
    started = time.monotonic()
    guard.refusal, guard.deadline = "", started + request["seconds"]
    cursor = connection.execute(request["sql"])
    rows: list[tuple[Any, ...]] = []
    total = 0
    for row in cursor:
        if len(rows) == request["rows"]:
            if request["cut"]:
                return result(cursor, rows, started, cut=True)
            raise RefusedError("rows", f"more than {request['rows']:,} rows")
        total += sum(map(size_of, row))
        if total > limits["result_bytes"]:
            raise RefusedError("bytes", f"a result of more than {limits['result_bytes']:,} bytes")
        rows.append(row)
    if cursor.description is None:
        raise RefusedError("sql", "no query")
    return result(cursor, rows, started, cut=False)


def result(cursor: sqlite3.Cursor, rows: list[tuple[Any, ...]], started: float, *, cut: bool) -> dict[str, Any]:
    """What is answered where all went well."""
    seconds = time.monotonic() - started
    return {"columns": [column[0] for column in cursor.description], "rows": rows, "seconds": seconds, "cut": cut}


def answer(request: dict[str, Any], limits: dict[str, Any], opened: dict[str, Any]) -> dict[str, Any]:
    """Run a request on its database, the last one being kept open."""
    bound_processor_time(request["seconds"])
    try:
        if opened.get("path") != request["database"]:
            if "connection" in opened:
                opened.pop("connection").close()
            guard = Guard()
            connection = open_database(request["database"], limits, guard)
            opened.update(path=request["database"], connection=connection, guard=guard)
        if "sql" not in request:
            rows = columns_of(opened["connection"], opened["guard"])
            return {"columns": ["table", "column"], "rows": rows, "seconds": 0.0, "cut": False}
        return run(opened["connection"], opened["guard"], request, limits)
    except RefusedError as error:
        return {"kind": error.kind, "error": str(error)}
    except MemoryError:
        return TOO_MUCH_MEMORY
    # a query with a surrogate or a NUL can't be handed to SQLite
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        return explain(error, opened.get("guard"), request)


def explain(error: Exception, guard: Guard | None, request: dict[str, Any]) -> dict[str, Any]:
    """Why a query failed, in a word and a sentence."""
    text = str(error)
    if guard is not None and guard.refusal:
        return {"kind": "forbidden", "error": f"not allowed: {guard.refusal}"}
    if text == "interrupted":
        return {"kind": "time", "error": f"stopped after {request['seconds']:g} seconds"}
    if "one statement at a time" in text:
        return {"kind": "forbidden", "error": "several statements"}
    if text in ("file is not a database", "database disk image is malformed", "unable to open database file"):
        return {"kind": "database", "error": text}
    return {"kind": "sql", "error": text}


def bound_processor_time(seconds: float) -> None:
    """Let the system end this process if a single opcode goes on and its parent is no more."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 10
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def encode(value: object) -> object:
    """What JSON has no word for: a blob."""
    if isinstance(value, bytes):
        return {"blob": base64.b64encode(value).decode("ascii")}
    raise TypeError(type(value).__name__)


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    head = stream.read(8)
    if len(head) < 8:
        return None
    request: dict[str, Any] = json.loads(stream.read(int.from_bytes(head, "big")))
    return request


def body_of(value: dict[str, Any], most: int) -> bytes:
    """An answer as it is sent; in place of one that is longer than `most`, or for which there is no memory, why not."""
    try:
        body = json.dumps(value, default=encode, separators=(",", ":"), ensure_ascii=False).encode()
        if len(body) <= most:
            return body
        value = {"kind": "bytes", "error": f"a result of more than {most:,} bytes as it is sent"}
    except MemoryError:
        value = TOO_MUCH_MEMORY
    return json.dumps(value).encode()


def send(stream: BinaryIO, body: bytes) -> None:
    stream.write(len(body).to_bytes(8, "big"))
    stream.write(body)
    stream.flush()


def main() -> None:
    limits = json.loads(sys.argv[1])
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    os.chdir("/")
    confine(limits)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("SELECT 1").fetchone()
    send(answers, json.dumps(READY).encode())
    opened: dict[str, Any] = {}
    while (request := receive(requests)) is not None:
        value = answer(request, limits, opened)
        if "error" in value and value["kind"] in ("memory", "time", "database"):
            # what is left of it must not weigh on the next query
            connection = opened.pop("connection", None)
            opened.clear()
            if connection is not None:
                connection.close()
        body = body_of(value, limits["answer_bytes"])
        del value
        send(answers, body)
        del body  # nor that


if __name__ == "__main__":
    main()
