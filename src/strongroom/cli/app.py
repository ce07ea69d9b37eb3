"""The words of the program: each verb, where its code is, and whether it may take long.

A verb's module is imported when the verb is used, so that `strongroom backup`
does not pay for `strongroom restore`.
"""

from __future__ import annotations

from cyclopts import App, Group, Parameter

import strongroom

EVERYDAY = Group("Everyday", sort_key=1)
RECOVER = Group("Recover", sort_key=2)
MANAGE = Group("Manage", sort_key=3)
AUTOMATION = Group("Automation", sort_key=4)

# verb, or its words → function in strongroom.cli.verbs
VERBS: dict[tuple[str, ...], tuple[str, Group]] = {
    ("init",): ("init:init", EVERYDAY),
    ("status",): ("status:status", EVERYDAY),
    ("backup",): ("backup:backup", EVERYDAY),
    ("list",): ("listing:list_snapshots", EVERYDAY),
    ("check",): ("check:check", EVERYDAY),
    ("doctor",): ("doctor:doctor", EVERYDAY),
    ("can-restore",): ("recovery:can_restore", RECOVER),
    ("points",): ("recovery:points", RECOVER),
    ("restore",): ("restore:restore", RECOVER),
    ("open",): ("opening:open_cluster", RECOVER),
    ("table",): ("recovery:table", RECOVER),
    ("ls",): ("browse:ls", RECOVER),
    ("get",): ("browse:get", RECOVER),
    ("diff",): ("browse:diff", RECOVER),
    ("export",): ("artefact:export", RECOVER),
    ("import",): ("artefact:import_artefact", RECOVER),
    ("keep",): ("retention:keep", MANAGE),
    ("expire",): ("retention:expire", MANAGE),
    ("undelete",): ("retention:undelete", MANAGE),
    ("prune",): ("retention:prune", MANAGE),
    ("drill", "run"): ("drill:run", MANAGE),
    ("drill", "list"): ("drill:list_drills", MANAGE),
    ("drill", "report"): ("drill:report", MANAGE),
    ("source", "test"): ("source:test", MANAGE),
    ("source", "grants"): ("source:grants", MANAGE),
    ("repository", "stats"): ("repository:stats", MANAGE),
    ("audit", "verify"): ("audit:verify", MANAGE),
    ("audit", "export"): ("audit:export", MANAGE),
    ("audit", "pin"): ("audit:pin", MANAGE),
    ("key", "list"): ("key:list_keys", MANAGE),
    ("key", "add"): ("key:add", MANAGE),
    ("key", "remove"): ("key:remove", MANAGE),
    ("key", "kit"): ("key:kit", MANAGE),
    ("notify", "list"): ("notify:list", MANAGE),
    ("notify", "run"): ("notify:run", MANAGE),
    ("notify", "test"): ("notify:test", MANAGE),
    ("serve",): ("schedule:serve", AUTOMATION),
    ("run-due",): ("schedule:run_due", AUTOMATION),
    ("metrics",): ("metrics:metrics", AUTOMATION),
    ("schedule", "cron"): ("units:cron", AUTOMATION),
    ("schedule", "systemd"): ("units:systemd", AUTOMATION),
    ("schedule", "kubernetes"): ("units:kubernetes", AUTOMATION),
    ("wal", "push"): ("wal:push", AUTOMATION),
    ("wal", "fetch"): ("wal:fetch", AUTOMATION),
    ("wal", "receive"): ("wal:receive", AUTOMATION),
    ("wal", "daemon"): ("wal:daemon", AUTOMATION),
    ("wal", "status"): ("wal:status", AUTOMATION),
    ("config", "check"): ("config:check", AUTOMATION),
    ("config", "show"): ("config:show", AUTOMATION),
    ("config", "schema"): ("config:schema", AUTOMATION),
    ("completion",): ("completion:completion", AUTOMATION),
    ("explain",): ("explain:explain", AUTOMATION),
    ("demo",): ("demo:demo", AUTOMATION),
}
NOUNS = {
    "source": "Sources: what is backed up.",
    "repository": "The repository: where the backups rest.",
    "drill": "Restore drills: proof that what is backed up can be restored, and how fast.",
    "audit": "The audit log: what was done, and the proof that nobody changed it afterwards.",
    "key": "Keys: who opens the repository.",
    "notify": "Who is told when something is wrong.",
    "schedule": "What makes the jobs run: lines and units to install.",
    "wal": "The write-ahead log: what PostgreSQL runs, and how far it is archived.",
    "config": "The configuration.",
}
# Commands that may take long: with --json they print lines, the last of type "result".
LONG = frozenset(
    {
        "backup", "restore", "check", "demo", "export", "import", "open", "table", "prune",
        "wal receive", "run-due", "serve", "drill run",
    }
)  # fmt: skip


def build() -> App:
    """Build the command line; no verb is imported."""
    app = App(
        name="strongroom",
        help="Backup and restore for PostgreSQL databases and file vaults, and proof.",
        version=strongroom.__version__,
        help_format="plaintext",
        default_parameter=Parameter(negative=(), show_default=False),
        result_action="return_value",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )
    app["--help"].group = app["--version"].group = Group("Beside", sort_key=99)
    parents: dict[str, App] = {}
    for words, (place, group) in VERBS.items():
        parent = app
        if len(words) > 1:
            noun = words[0]
            if noun not in parents:
                parents[noun] = App(name=noun, help=NOUNS[noun], group=group)
                app.command(parents[noun])
            parent = parents[noun]
        shown = None if parent is not app else group
        parent.command(f"strongroom.cli.verbs.{place}", name=words[-1], group=shown)
    return app
