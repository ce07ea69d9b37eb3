"""What makes jobs run, as text to install: a crontab, systemd units, Kubernetes CronJobs.

Each starts `run-due JOB` at the job's time, and `run-due all` once an hour for what was missed. What
is due `run-due` decides itself: a line that comes too often, or where clocks change, does no harm.
Shell, unit and YAML each have their own quoting; nothing here is put in without it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from strongroom.rules.cron import Cron
from strongroom.rules.schedule import Job

CATCH_UP_MINUTE = 7
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_STOP = 120  # seconds for a job to stop in order
_CREDENTIALS = "/run/credentials/strongroom"


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the program is, its configuration, and what it needs.

    `folder`: the repository where it is one of this machine. `credentials`: names of the references
    `systemd:NAME`. `environment`: variables that references `env:NAME` name. `grace` in seconds.
    """

    program: str
    configuration: str
    zone: str
    folder: str | None = None
    credentials: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    user: str = "strongroom"
    grace: int = 600


def crontab(jobs: Sequence[Job], setting: Setting) -> str:
    """Lines for `crontab -e`."""
    command = (
        f"{shlex.quote(setting.program)} --config={shlex.quote(setting.configuration)} --quiet"
    )
    command = command.replace("%", r"\%")
    lines = [
        "# Strongroom: install with `crontab -e` as the user who runs the backups.",
        "# Times are those of the zone below. cronie (Fedora, RHEL, Arch) reads CRON_TZ. Debian's cron",
        "# does not, and starts its lines at the machine's own times: where that is another zone, the",
        "# hourly line brings what is due, at most an hour late.",
        f"CRON_TZ={setting.zone}",
    ]
    for variable in setting.environment:
        lines.append(
            f"# {variable} must be set in the environment of cron, or be another reference."
        )
    for job in jobs:
        lines.append(f"{job.cron.text} {command} run-due {job.name}")
    lines += [
        "# What was missed while the machine was off, or given up by a host that died:",
        f"{CATCH_UP_MINUTE} * * * * {command} run-due all",
    ]
    return "\n".join(lines) + "\n"


# -- systemd -----------------------------------------------------------------------------------


def systemd(jobs: Sequence[Job], setting: Setting) -> dict[str, str]:
    """Units and the user they need, by path. Either the timers or `serve` are enabled."""
    units = {
        "/etc/sysusers.d/strongroom.conf": _sysuser(setting),
        "/etc/systemd/system/strongroom@.service": _service(setting),
    }
    for job in jobs:
        units[f"/etc/systemd/system/strongroom-{job.name}.timer"] = _timer(job, setting)
    units["/etc/systemd/system/strongroom-catch-up.timer"] = (
        "[Unit]\nDescription=Strongroom: what was missed\n\n[Timer]\n"
        f"OnCalendar=*-*-* *:{CATCH_UP_MINUTE:02}:00\nPersistent=true\n"
        "Unit=strongroom@all.service\n\n[Install]\nWantedBy=timers.target\n"
    )
    units["/etc/systemd/system/strongroom-serve.service"] = _server(setting)
    return units


def on_calendar(cron: Cron, zone: str) -> list[str]:
    """The expressions of systemd.time(7) that together come when `cron` does, but for times that
    clocks jump over: systemd leaves those out."""
    hours = f"{_set(cron.hours, 0, 23)}:{_set(cron.minutes, 0, 59)}:00 {zone}"
    months = _set(cron.months, 1, 12)
    days, weekdays = _set(cron.days, 1, 31), ""
    if len(cron.weekdays) < 7:
        weekdays = ",".join(_WEEKDAYS[day] for day in sorted(cron.weekdays)) + " "
    if cron.either:
        return [f"*-{months}-{days} {hours}", f"{weekdays}*-{months}-* {hours}"]
    return [f"{weekdays}*-{months}-{days} {hours}"]


def _set(values: Collection[int], low: int, high: int) -> str:
    chosen = sorted(values)
    if len(chosen) == high - low + 1:
        return "*"
    return ",".join(f"{value:02}" for value in chosen)


def _timer(job: Job, setting: Setting) -> str:
    lines = ["[Unit]", f"Description=Strongroom: when {job.name} runs", "", "[Timer]"]
    lines += [f"OnCalendar={one}" for one in on_calendar(job.cron, setting.zone)]
    persistent = "true" if job.catch_up == "once" else "false"
    lines += ["AccuracySec=1s", f"Persistent={persistent}", f"Unit=strongroom@{job.name}.service"]
    lines += ["", "[Install]", "WantedBy=timers.target"]
    return "\n".join(lines) + "\n"


def _sysuser(setting: Setting) -> str:
    return f'u {setting.user} - "Strongroom backups" /var/lib/strongroom\n'


def _service(setting: Setting) -> str:
    run = _command(setting, "run-due", "%i")
    return "\n".join(
        [
            "[Unit]",
            "Description=Strongroom: %i",
            "Wants=network-online.target",
            "After=network-online.target",
            "",
            "[Service]",
            "Type=oneshot",
            f"ExecStart={run}",
            "TimeoutStartSec=infinity",
            f"TimeoutStopSec={_STOP}s",
            "RuntimeDirectory=strongroom/%i",
            *_hardening(setting),
            "",
        ]
    )


def _server(setting: Setting) -> str:
    run = _command(setting, "serve")
    return "\n".join(
        [
            "[Unit]",
            "Description=Strongroom: every job at its time (instead of the timers)",
            "Wants=network-online.target",
            "After=network-online.target",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={run}",
            "ExecReload=/bin/kill -HUP $MAINPID",
            "Restart=on-failure",
            "RestartSec=60s",
            f"TimeoutStopSec={setting.grace + _STOP}s",
            "RuntimeDirectory=strongroom/serve",
            *_hardening(setting),
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )


def _hardening(setting: Setting) -> list[str]:
    lines = [
        "KillMode=mixed",
        "Nice=10",
        f"User={setting.user}",
        f"Group={setting.user}",
        "UMask=0077",
        "CacheDirectory=strongroom",
        "StateDirectory=strongroom",
        "RuntimeDirectoryMode=0700",
        "Environment=STRONGROOM_CACHE_DIR=/var/cache/strongroom",
    ]
    for name in setting.credentials:
        lines.append(f"LoadCredential={name}:/etc/strongroom/credentials/{name}")
    for variable in setting.environment:
        lines.append(
            f"# env:{variable} is not set here; better is systemd:NAME with LoadCredential."
        )
    if setting.folder is not None:
        lines.append(f"ReadWritePaths={_quoted(setting.folder)}")
    return [
        *lines,
        "NoNewPrivileges=yes",
        "# Files of other users: CAP_DAC_READ_SEARCH here and in AmbientCapabilities. The files of a",
        "# cluster: User= and Group= of PostgreSQL instead.",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        "PrivateDevices=yes",
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "ProtectProc=invisible",
        "LockPersonality=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
    ]


def _command(setting: Setting, *words: str) -> str:
    program = _quoted(setting.program)
    return " ".join([program, _quoted(f"--config={setting.configuration}"), *words])


def _quoted(word: str) -> str:
    """A word of a unit file (systemd.service(5), systemd.unit(5)): specifiers, variables, quotes."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    escaped = escaped.replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[A-Za-z0-9_./=:@+,-]+", word) else f'"{escaped}"'


# -- Kubernetes --------------------------------------------------------------------------------


def kubernetes(jobs: Sequence[Job], setting: Setting, *, image: str) -> str:
    """One CronJob for each job, and one for what was missed; several documents of YAML."""
    head = [
        "# Strongroom. Needed beside these: a ConfigMap `strongroom` with strongroom.toml, and a Secret",
        "# `strongroom` with a key for each reference `systemd:NAME`; it is mounted as files.",
    ]
    if setting.credentials:
        head.append(f"# Keys of the Secret: {', '.join(setting.credentials)}.")
    for variable in setting.environment:
        head.append(f"# env:{variable} is not set in these pods; write systemd:NAME instead.")
    if setting.folder is not None:
        head.append(
            "# The repository is a folder: a PersistentVolumeClaim `strongroom-repository`."
        )
    head.append(
        "# Folders that are backed up are volumes of your own: add them where they are read."
    )
    documents = [_cron_job(job.name, fields(job.cron), setting, image) for job in jobs]
    documents.append(_cron_job("all", f"{CATCH_UP_MINUTE} * * * *", setting, image))
    return "\n".join(head) + "\n---\n" + "---\n".join(documents)


def fields(cron: Cron) -> str:
    """Five fields as Kubernetes reads them: numbers only, Sunday is 0, and a day that either day
    field names, unless one is "*". Where that cannot say it, more often than needed."""

    def listed(values: Collection[int], low: int, high: int) -> str:
        chosen = sorted(values)
        return "*" if len(chosen) == high - low + 1 else ",".join(map(str, chosen))

    days, weekdays = listed(cron.days, 1, 31), listed(cron.weekdays, 0, 6)
    if not cron.either and "*" not in (days, weekdays):
        days = "*"
    if cron.either and "*" in (days, weekdays):
        days = weekdays = "*"
    hours, minutes = listed(cron.hours, 0, 23), listed(cron.minutes, 0, 59)
    return f"{minutes} {hours} {days} {listed(cron.months, 1, 12)} {weekdays}"


def object_name(job: str) -> str:
    """A name that Kubernetes takes: lower case, 52 characters at most, of one job only."""
    plain = "strongroom-" + re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")
    if plain == "strongroom-" + job and len(plain) <= 52:
        return plain
    return f"{plain[:43].rstrip('-')}-{hashlib.sha256(job.encode()).hexdigest()[:8]}"


def _cron_job(job: str, schedule: str, setting: Setting, image: str) -> str:
    text = json.dumps
    mounts = [("configuration", "/etc/strongroom", True), ("credentials", _CREDENTIALS, True)]
    mounts += [("cache", "/var/cache/strongroom", False), ("tmp", "/tmp", False)]  # noqa: S108
    volumes = [
        ("configuration", "configMap: {name: strongroom}"),
        ("credentials", "secret: {secretName: strongroom, optional: true, defaultMode: 0440}"),
        ("cache", "emptyDir: {}"),
        ("tmp", "emptyDir: {}"),
    ]
    if setting.folder is not None:
        mounts.append(("repository", setting.folder, False))
        volumes.append(("repository", "persistentVolumeClaim: {claimName: strongroom-repository}"))
    args = ["--config=/etc/strongroom/strongroom.toml", "run-due", job]
    lines = [
        "apiVersion: batch/v1",
        "kind: CronJob",
        "metadata:",
        f"  name: {object_name(job)}",
        "  labels: {app.kubernetes.io/name: strongroom}",
        "spec:",
        f"  schedule: {text(schedule)}",
        f"  timeZone: {text(setting.zone)}",
        "  concurrencyPolicy: Forbid",
        "  startingDeadlineSeconds: 3600",
        "  successfulJobsHistoryLimit: 3",
        "  failedJobsHistoryLimit: 3",
        "  jobTemplate:",
        "    spec:",
        "      backoffLimit: 0",
        "      template:",
        "        spec:",
        "          restartPolicy: Never",
        f"          terminationGracePeriodSeconds: {_STOP}",
        "          automountServiceAccountToken: false",
        "          securityContext:",
        "            runAsNonRoot: true",
        "            runAsUser: 65532",
        "            runAsGroup: 65532",
        "            fsGroup: 65532",
        "            seccompProfile: {type: RuntimeDefault}",
        "          containers:",
        "            - name: strongroom",
        f"              image: {text(image)}",
        '              command: ["strongroom"]',
        f"              args: {text(args)}",
        "              env:",
        f"                - {{name: CREDENTIALS_DIRECTORY, value: {_CREDENTIALS}}}",
        "                - {name: STRONGROOM_CACHE_DIR, value: /var/cache/strongroom}",
        "              securityContext:",
        "                allowPrivilegeEscalation: false",
        "                readOnlyRootFilesystem: true",
        '                capabilities: {drop: ["ALL"]}',
        "              volumeMounts:",
    ]
    for name, path, read_only in mounts:
        tail = ", readOnly: true" if read_only else ""
        lines.append(f"                - {{name: {name}, mountPath: {text(path)}{tail}}}")
    lines.append("          volumes:")
    lines += [f"            - {{name: {name}, {what}}}" for name, what in volumes]
    return "\n".join(lines) + "\n"
