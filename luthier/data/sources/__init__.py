"""File types, one a file: each knows its suffixes and yields `RawRow`s with the exact place they came from.

A file type has `Options`, `SUFFIXES` and `build(options, path) -> Iterator[RawRow]`. What is wrong with the file as
a whole (not UTF-8, broken JSON, a ragged table) is a `DataError` naming file and place. A text type reads its bytes
through `_decoding`, which decompresses `.gz` and `.zst`; types with a compression of their own have `BINARY = True`.
"""
