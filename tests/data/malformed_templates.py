"""Chat templates that a model's folder must not get away with: `TEMPLATES[name] = (source, what the error must say)`."""

from __future__ import annotations

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SLOW = r"the chat template takes more than 0\.3 seconds for one conversation"
LARGE = r"the chat template makes more than \d[\d,]+ characters of text"
ENDLESS = rf"{SLOW}|{LARGE}"
WIDE = r"the chat template asks for text of the width"
UNSAFE = r"is unsafe|insecure|may not store"


def _grown(first: str, step: str) -> str:
    return f"{{% set n = namespace(x={first}) %}}{{% for i in range(60) %}}{{% set n.x = {step} %}}{{% endfor %}}"


TEMPLATES: dict[str, tuple[str, str]] = {
    # for ever
    "loops in loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}", SLOW),
    "a macro that calls itself twice": ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", SLOW),
    "a macro without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"RecursionError"),
    "a loop into itself": ("{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}", r"RecursionError|recursion"),
    "a loop into itself twice": (
        "{% for i in [60] recursive %}{% if i %}{{ loop([i - 1]) }}{{ loop([i - 1]) }}{% endif %}{% endfor %}",
        SLOW,
    ),
    "a long range": ("{% for i in range(10**9) %}{% endfor %}", r"Range too big"),
    # memory
    "a text that doubles": (_grown("'aaaaaaaa'", "n.x + n.x"), LARGE),
    "a text that doubles by ~": (_grown("'aaaaaaaa'", "n.x ~ n.x"), LARGE),
    "a list that doubles": (_grown("[1]", "n.x + n.x"), LARGE),
    "a list in itself, written": (_grown("[1]", "[n.x, n.x]") + "{{ n.x }}", ENDLESS),
    "a list in itself as JSON": (_grown("[1]", "[n.x, n.x]") + "{{ n.x | tojson }}", ENDLESS),
    "a list in itself as text": (_grown("[1]", "[n.x, n.x]") + "{{ n.x | string | length }}", ENDLESS),
    "a list in itself, formatted": (_grown("[1]", "[n.x, n.x]") + "{{ '%s' % [n.x] }}", ENDLESS),
    "a number that squares": (_grown("9", "n.x * n.x"), r"a number of thousands of digits"),
    "a power": ("{{ 9 ** (9 ** 9) }}", r"a number of thousands of digits"),
    "a text times a billion": ("{{ 'a' * 1000000000 }}", LARGE),
    "a billion times a list": ("{{ (1000000000 * [1]) | length }}", LARGE),
    "a centred text": ("{{ 'a' | center(1000000000) }}", WIDE),
    "a text in the middle": ("{{ 'a'.center(1000000000) }}", WIDE),
    "a padded text": ("{{ 'a'.ljust(width) if width else 'a'.ljust(10 ** 9) }}", WIDE),
    "a formatted width": ("{{ '%1000000000d' % 1 }}", WIDE),
    "a width among the values": ("{{ '%*d' % (1000000000, 1) }}", WIDE),
    "a format's width": ("{{ '{:1000000000d}'.format(1) }}", WIDE),
    "a width in the format": ("{{ '{:{}d}'.format(1, 1000000000) }}", WIDE),
    "a format as a filter": ("{{ '%1000000000d' | format(1) }}", WIDE),
    "an indented text": ("{{ 'a\nb' | indent(1000000000) }}", WIDE),
    "JSON far to the right": ("{{ messages | tojson(indent=1000000000) }}", WIDE),
    "batches of a billion": ("{{ [1] | batch(1000000000, 0) | list }}", WIDE),
    "replacing": ("{% set x = 'a' * 100000 %}{{ x.replace('a', x) | length }}", LARGE),
    "replacing as a filter": ("{% set x = 'a' * 100000 %}{{ x | replace('a', x) | length }}", LARGE),
    "joining": ("{% set x = 'a' * 100000 %}{{ (range(99999) | list) | join(x) | length }}", LARGE),
    "writing again and again": ("{% set x = 'a' * 100000 %}{% for i in range(99999) %}{{ x }}{% endfor %}", LARGE),
    "much text in a loop": ("{% for i in range(99999) %}" + "a" * 100_000 + "{% endfor %}", LARGE),
    "prose without end": ("{{ lipsum(n=1000000) }}", r"'lipsum' is undefined"),
    # Python's internals
    "a class": ("{{ ''.__class__ }}", UNSAFE),
    "all classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", UNSAFE),
    "a class by item": ("{{ ''['__class__'] }}", UNSAFE),
    "a class by filter": ("{{ '' | attr('__class__') }}", UNSAFE),
    "a class by name": ("{{ messages | map(attribute='__class__') | list }}", UNSAFE),
    "a class in a format": ("{{ '{0.__class__}'.format('') }}", UNSAFE),
    "globals of a function": ("{{ raise_exception.__globals__ }}", UNSAFE),
    "globals of a macro": ("{% macro f() %}{% endmacro %}{{ f.__init__.__globals__ }}", UNSAFE),
    "a namespace's inside": ("{% set n = namespace() %}{% set n.__class__ = 1 %}", UNSAFE),
    "a list that is changed": ("{{ messages.append(1) }}", UNSAFE),
    "another file": ("{% include '/etc/passwd' %}", r"no loader"),
    "another template": ("{% extends 'x' %}", r"no loader"),
    # no template at all
    "a tag never closed": ("{% for m in messages %}", r"is broken: Unexpected end of template"),
    "a name never defined": ("{{ nothing.at.all }}", r"'nothing' is undefined"),
    "brackets in brackets": ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", r"is broken: it is nested too deeply"),
    "an unknown filter": ("{{ 'a' | shout }}", r"is broken: No filter named 'shout'"),
    "a refusal": ("{{ raise_exception('no') }}", r"refuses this conversation: no"),
    "numbers for answers": ("{% generation %}{% endgeneration %}{% generation %}{% endgeneration %}", r"marks more spans than"),
}  # fmt: skip
