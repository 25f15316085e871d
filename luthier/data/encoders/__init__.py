"""From records to token sequences, one encoder a file.

An encoder has `Options` (with `cutoff_length`), `RECORD` (the kind of record it takes), `NEEDS_TEMPLATE` and
`build(options, tokenizer, renderer) -> Callable[[Sequence[Record]], Encoded]`. It may have `TRAINS_TOKENS = False` (its
examples are used though no token of them is a target), `SEQUENCE_NAMES` (where an example has several sequences) and
`from_records(records)`: options that the training data decide.
config/stage_encoders.py says which stage's rows go through which one.
"""
