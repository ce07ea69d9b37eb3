"""What is printed to install: golden files, and what systemd, cron and YAML make of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from strongroom.rules import units
from strongroom.rules.cron import Cron
from strongroom.rules.schedule import Job
from strongroom.rules.units import Setting

GOLDEN = Path(__file__).parents[1] / "golden" / "schedule"
SETTING = Setting(
    "/usr/bin/strongroom",
    "/etc/strongroom/strongroom.toml",
    "Europe/Madrid",
    folder="/var/lib/strongroom",
    credentials=("passphrase", "pgpassword"),
)
ANALYZE = shutil.which("systemd-analyze")


def job(name: str, text: str, catch_up: Any = "once") -> Job:
    return Job(name, (("check",),), Cron.parse(text), UTC, catch_up=catch_up)


# The seed's two lines, and one whose day either field names.
JOBS = [
    job("backup.stakazo-db", "0 2 * * *"),
    job("backup.memory-vault", "0 3 1 * *"),
    job("check", "30 4 1,15 * sun", "none"),
]


def files() -> dict[str, str]:
    text = "".join(f"# {path}\n{body}\n" for path, body in units.systemd(JOBS, SETTING).items())
    return {
        "crontab": units.crontab(JOBS, SETTING),
        "systemd.txt": text,
        "kubernetes.yaml": units.kubernetes(JOBS, SETTING, image="strongroom:1"),
    }


@pytest.mark.parametrize("name", ["crontab", "systemd.txt", "kubernetes.yaml"])
def test_what_is_printed_is_as_it_was(name: str) -> None:
    path, text = GOLDEN / name, files()[name]
    if os.environ.get("STRONGROOM_WRITE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


def test_the_seeds_lines_are_in_the_crontab() -> None:
    lines = units.crontab(JOBS, SETTING).splitlines()
    for begin in ("CRON_TZ=Europe/Madrid", "0 2 * * * /usr/bin/strongroom ", "0 3 1 * * /usr/bin/"):
        assert any(line.startswith(begin) for line in lines), begin


def test_names_are_quoted_as_each_reads_them() -> None:
    odd = Setting("/opt/a b/strongroom", '/etc/50%/$x "y".toml', "UTC")
    crontab = units.crontab(JOBS, odd)
    assert r"""'/opt/a b/strongroom' --config='/etc/50\%/$x "y".toml'""" in crontab
    service = units.systemd(JOBS, odd)["/etc/systemd/system/strongroom@.service"]
    assert (
        r'ExecStart="/opt/a b/strongroom" "--config=/etc/50%%/$$x \"y\".toml" run-due %i' in service
    )


# -- systemd -----------------------------------------------------------------------------------

SCHEDULES = [
    "0 2 * * *",
    "0 3 1 * *",
    "*/15 8-18 * * mon-fri",
    "0,30 0-23/2 1,15 jan,jul sun",
    "30 4 */2 * mon",
    "0 0 29 2 *",
    "59 23 31 12 0",
]


def elapses(expressions: list[str], base: datetime, count: int) -> list[datetime]:
    """What comes, by systemd's word."""
    found: set[datetime] = set()
    for one in expressions:
        done = subprocess.run(
            [
                str(ANALYZE), "calendar", f"--base-time={base:%Y-%m-%d %H:%M:%S} UTC",
                f"--iterations={count}", one,
            ],
            capture_output=True, text=True, check=True, env={**os.environ, "TZ": "UTC"},
        )  # fmt: skip
        for text in re.findall(r"(?:elapse|#\d+): \w{3} (\S+ \S+) UTC", done.stdout):
            found.add(datetime.fromisoformat(text).replace(tzinfo=UTC))
    return sorted(found)[:count]


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("text", SCHEDULES)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Madrid"])
def test_systemd_reads_it_as_the_same_times(text: str, zone: str) -> None:
    base, cron = datetime(2026, 5, 1, tzinfo=UTC), Cron.parse(text)
    found = elapses(units.on_calendar(cron, zone), base, 6)
    assert found
    expected, moment = [], base
    for _ in found:
        moment = cron.next(moment, ZoneInfo(zone))
        expected.append(moment)
    assert found == expected


def test_the_expressions_in_words() -> None:
    """For machines without systemd: the shape of each, as systemd.time(7) has it."""
    for text in SCHEDULES:
        for one in units.on_calendar(Cron.parse(text), "Asia/Beirut"):
            assert re.fullmatch(
                r"((Sun|Mon|Tue|Wed|Thu|Fri|Sat)(,\w{3})* )?\*-(\*|\d\d(,\d\d)*)-(\*|\d\d(,\d\d)*)"
                r" (\*|\d\d(,\d\d)*):(\*|\d\d(,\d\d)*):00 Asia/Beirut",
                one,
            ), one
    assert units.on_calendar(Cron.parse("0 3 1 * sun"), "UTC") == [
        "*-*-01 03:00:00 UTC",
        "Sun *-*-* 03:00:00 UTC",
    ]


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    true = Setting("/bin/true", "/etc/strongroom.toml", "UTC", credentials=("passphrase",))
    paths = []
    for path, text in units.systemd(JOBS, true).items():
        if path.startswith("/etc/systemd/"):
            paths.append(tmp_path / os.path.basename(path))
            paths[-1].write_text(text)
    names = [str(path) for path in paths if "@." not in path.name]
    names.append(str(tmp_path / "strongroom@check.service"))
    (tmp_path / "strongroom@check.service").symlink_to("strongroom@.service")
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", *names], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "strongroom" in line]
    assert ours == [], done.stderr
    shown = subprocess.run(
        [
            str(ANALYZE), "security", "--offline=true", "--no-pager",
            str(tmp_path / "strongroom-serve.service"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", shown.stdout)
    assert exposure is not None, shown.stderr
    assert float(exposure[1]) < 3.0, shown.stdout


# -- Kubernetes --------------------------------------------------------------------------------


def test_kubernetes_takes_the_shape() -> None:
    documents = list(yaml.safe_load_all(units.kubernetes(JOBS, SETTING, image="strongroom:1")))
    jobs = [one for one in documents if one is not None]
    assert len(jobs) == len(JOBS) + 1
    names = [one["metadata"]["name"] for one in jobs]
    assert len(set(names)) == len(names)
    for one in jobs:
        assert (one["apiVersion"], one["kind"]) == ("batch/v1", "CronJob")
        spec = one["spec"]
        assert (spec["timeZone"], spec["concurrencyPolicy"]) == ("Europe/Madrid", "Forbid")
        Cron.parse(spec["schedule"])
        pod = spec["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {each["name"] for each in container["volumeMounts"]} == {
            each["name"] for each in pod["volumes"]
        }
        secret = next(each["secret"] for each in pod["volumes"] if each["name"] == "credentials")
        assert secret["defaultMode"] & 0o026 == 0, "such a file would be refused"
    assert [one["spec"]["schedule"] for one in jobs[:2]] == ["0 2 * * *", "0 3 1 * *"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("check", "strongroom-check"),
        ("Backup.A_b", r"strongroom-backup-a-b-[0-9a-f]{8}"),
        ("backup." + "x" * 64, r"strongroom-backup-x{25}-[0-9a-f]{8}"),
    ],
)
def test_names_that_kubernetes_takes(name: str, told: str) -> None:
    made = units.object_name(name)
    assert re.fullmatch(told, made) and len(made) <= 52


def test_a_day_that_kubernetes_cannot_say_comes_more_often() -> None:
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    for text in ("30 4 */2 * mon", "0 3 1 * sun", "0 3 1-31 * 1", "0 3 1 * 0-7"):
        cron = Cron.parse(text)
        wider = Cron.parse(units.fields(cron))
        until = begin + timedelta(days=40)
        assert set(cron.between(begin, until, UTC)) <= set(wider.between(begin, until, UTC))
