"""Is a text a schedule? Five fields as crontab(5) has them: minute, hour, day, month, weekday.

A field is `*`, a number, a range `a-b`, either with a step `/n`, or several of these with commas;
months and weekdays may have their English names. 0 and 7 are Sunday.
"""

from __future__ import annotations

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: at for at, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 7, {name: at for at, name in enumerate(_WEEKDAYS)}),
)
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def check_schedule(text: str) -> None:
    """ValueError, which says which field, for what is no schedule or can never come."""
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError('must have five fields, as in crontab: "0 2 * * *" is daily at 02:00')
    sets = [
        _field(field, name, low, high, words)
        for field, (name, low, high, words) in zip(fields, _FIELDS, strict=True)
    ]
    days, months = sets[2], sets[3]
    # With a weekday beside it cron takes either, and a weekday always comes.
    if fields[4] == "*" and not any(min(days) <= _LONGEST[month - 1] for month in months):
        raise ValueError("names days that no month of it has")


def _field(text: str, name: str, low: int, high: int, words: dict[str, int]) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            begin, end = low, high
        else:
            begin = _number(first, name, low, high, words)
            end = _number(last, name, low, high, words) if dash else begin
            if slash and not dash:
                raise ValueError(
                    f'has a step without a range in its {name}; write "*/n" or "a-b/n"'
                )
        if end < begin:
            raise ValueError(f"has a range that runs backwards in its {name}")
        stride = _number(step, name, 1, high, {}) if slash else 1
        found.update(range(begin, end + 1, stride))
    return found


def _number(text: str, name: str, low: int, high: int, words: dict[str, int]) -> int:
    if text.lower() in words:
        return words[text.lower()]
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and low <= int(text) <= high):
        raise ValueError(f"has something in its {name} that is not {low} to {high}")
    return int(text)
