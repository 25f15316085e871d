"""`luthier tokenizer` on the command line: options and help of its verbs, which import what they need when they run.

Each verb returns its result and whether --json was given; the command line prints the object.
"""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.commands.verb_options import Ended, Json, RemoteCode, people

tokenizer_app = typer.Typer(
    help="Tokenizers: train one, look at what several do, add words.", no_args_is_help=True, rich_markup_mode=None
)


@tokenizer_app.command("train")
def tokenizer_train(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES...",
            help="Files (.txt, .jsonl, .csv, .parquet ..., also .gz or .zst), folders, patterns, data sets of a hub (owner/name).",
        ),
    ],
    algorithm: Annotated[str, typer.Option(help="bpe, byte-bpe, wordpiece, unigram, word or char.")],
    vocab_size: Annotated[int, typer.Option(min=1, help="Tokens at most, special tokens included.")],
    out: Annotated[str, typer.Option(help="The folder to write.")],
    column: Annotated[str, typer.Option(help="The field with the text.")] = "text",
    normalizer: Annotated[
        str | None,
        typer.Option(help="none, or in order: nfc, nfd, nfkc, nfkd, nmt, lowercase, strip-accents, strip, bert."),
    ] = None,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option(
            help="none, or in order: byte-level, metaspace, whitespace, whitespace-split, bert, digits, punctuation, "
            "unicode-scripts, characters."
        ),
    ] = None,
    post_processor: Annotated[str | None, typer.Option(help="none, bert or template.")] = None,
    single: Annotated[str | None, typer.Option(help="Template for one text, such as '<s> $A </s>'.")] = None,
    pair: Annotated[
        str | None, typer.Option(help="For two, such as '<s> $A </s> $B:1 </s>:1'; default: --single twice.")
    ] = None,
    decoder: Annotated[str | None, typer.Option(help="none, byte-level, metaspace, wordpiece or fuse.")] = None,
    special_tokens: Annotated[
        str,
        typer.Option(help="Further ones, split by commas; ROLE=TOKEN renames unk, bos, eos, pad, cls, sep or mask."),
    ] = "",
    min_frequency: Annotated[int, typer.Option(min=0, help="How often a pair or a word must occur.")] = 0,
    chat_template: Annotated[str, typer.Option(help="A named template to save with it, such as chatml.")] = "",
    as_json: Json = False,
) -> Ended:
    """Make a tokenizer from files, which may be larger than memory."""
    from luthier.commands.tokenizer import names_in
    from luthier.commands.tokenizer import train as command
    from luthier.model.tokenizers.training import TrainingSpec

    spec = TrainingSpec(
        algorithm=algorithm,
        vocab_size=vocab_size,
        normalizer=names_in(normalizer),
        pre_tokenizer=names_in(pre_tokenizer),
        post_processor=post_processor,
        single=single,
        pair=pair,
        decoder=decoder,
        special_tokens=names_in(special_tokens) or (),
        min_frequency=min_frequency,
    )
    return command(sources, out, spec, column=column, chat_template=chat_template), as_json


@tokenizer_app.command("show")
def tokenizer_show(
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What to follow through the stages.")] = None,
    tokenizer: Annotated[
        list[str] | None, typer.Option(help="A model or a tokenizer's folder; repeat it to compare several.")
    ] = None,
    pair: Annotated[str | None, typer.Option(help="A second text.")] = None,
    file: Annotated[
        str | None, typer.Option(help="Count the tokens of a file, a folder, a pattern or a hub's data set.")
    ] = None,
    column: Annotated[str, typer.Option(help="The file's field with the text.")] = "text",
    max_length: Annotated[int | None, typer.Option(min=1, help="Longest window in tokens.")] = None,
    stride: Annotated[int, typer.Option(min=0, help="Tokens that a window repeats of the one before.")] = 0,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> Ended:
    """Each stage of a text's way through tokenizers side by side; what a file costs in each."""
    from rich.console import Console

    from luthier.commands.tokenizer import show as command

    result = command(
        tokenizer or (),
        text,
        pair=pair,
        file=file,
        column=column,
        max_length=max_length,
        stride=stride,
        trust_remote_code=trust_remote_code,
        console=Console(file=people(as_json), highlight=False),
    )
    return result, as_json


@tokenizer_app.command("extend")
def tokenizer_extend(
    model: Annotated[str, typer.Argument(help="A model, a merged run or a checkpoint.")],
    out: Annotated[str, typer.Option(help="The folder to write.")],
    add: Annotated[list[str] | None, typer.Option(help="A word; may be repeated.")] = None,
    add_file: Annotated[str | None, typer.Option(help="Words, one a line; after a tabulator, a description.")] = None,
    init: Annotated[str, typer.Option(help="New rows: mean, noise (around the mean) or description.")] = "mean",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> Ended:
    """Add words to a model's tokenizer, and rows to its embedding and head."""
    from luthier.commands.tokenizer import extend as command

    result = command(
        model, out, words=add or (), file=add_file, init=init, seed=seed, trust_remote_code=trust_remote_code
    )
    return result, as_json
