"""Row layouts, one a file: each says whether a file's fields match it, and turns a `RawRow` into a record.

A format has `Options` (a `FormatOptions`: the parts it knows and the columns they stand in), `RECORD` (the kind of
record it makes), `detect(sample, options) -> tuple[Options, str] | None` (with the reason, which is reported) and
`build(options) -> Callable[[RawRow], Record]`, which raises `RowError` for a row it can't use. `FALLBACK = True`
marks a format that is chosen only where no other matches. Where a row may hold several records, `build_all(options)`
gives a function that returns them all.
"""
