"""From records to token sequences, one encoder a file.

An encoder has `Options` (with `cutoff_length`), `RECORD` (the kind of record it takes), `NEEDS_TEMPLATE` and
`build(options, tokenizer, renderer) -> Callable[[Sequence[Record]], Encoded]`. A stage says
which one its data goes through.
"""
