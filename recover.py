#!/usr/bin/env python3
# ruff: noqa: E401, E701, E704, I001
# fmt: off
"""Restore from a Strongroom repository without Strongroom: docs/format.md in one file.

    python3 recover.py --repository DIR --code-file F list
    python3 recover.py --repository DIR --code-file F restore SNAPSHOT DEST [--path PREFIX]

DIR is a local repository or a bucket copied to disk; it is only read. SNAPSHOT is a source's name for its
newest, or an id or its beginning. Needs Python 3.11, cryptography >= 50, blake3, and zstd (backports.zstd
before Python 3.14). Identity, signatures, certificates, seals and chunk ids are verified; what does not
hold is named, and the rest goes on. Memory holds a few frames and one index segment.
Exit: 0 all recovered, 2 usage, 3 parts lost, 4 DEST not empty, 5 no snapshot, 8 no key.
"""

import argparse, base64, collections, contextlib, functools, glob, itertools, json, os
import sqlite3, stat, struct, sys

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf import argon2, hkdf

try: from compression import zstd
except ImportError: from backports import zstd

MAX_PLAIN = 16 << 20  # the longest frame, once it is opened
SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
LABELS = {"keyfile": b"strongroom key file 1", "recovery-code": b"strongroom recovery code 1"}
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # of recovery codes
FILE, DIRECTORY, SYMLINK, HARDLINK, FIFO, CHARACTER, BLOCK, SOCKET, STREAM = range(1, 10)
NODES = {FIFO: stat.S_IFIFO, CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK, SOCKET: stat.S_IFSOCK}
NEW_FILE, A_FOLDER = os.O_WRONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
Entry = collections.namedtuple("Entry", "path kind flags mode uid gid mtime size content target rdev xattrs")
BROKEN = (ValueError, LookupError, TypeError, OSError, struct.error, zstd.ZstdError,
          InvalidSignature, InvalidTag)
TABLES = """pragma journal_mode = off;
create table chunk (id, session, sequence, at, length, primary key (id, session, sequence));
create table frame (session, sequence, pack, place, size, primary key (session, sequence, pack))"""
PLACES = """select session, sequence, pack, place, size, at, length
    from chunk join frame using (session, sequence) where id = ?"""

def say(text, status=None):
    print(text, file=sys.stderr, flush=True)
    if status is not None: raise SystemExit(status)

def shown(name):
    """A name or a fault as text that is safe to print."""
    text = str(name, "utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)
    text = text or ("it does not authenticate" if isinstance(name, Exception) else ".")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)

def canonical(document):
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

def verify(public, signature, message):
    ed25519.Ed25519PublicKey.from_public_bytes(public).verify(bytes.fromhex(signature), message)

def secret_of(options):
    """(kind of key holder, its secret) from the file that was named."""
    with open(options.key_file or options.code_file or options.passphrase_file, "rb") as file:
        data = file.read().removesuffix(b"\n").removesuffix(b"\r")
    if options.key_file:
        secret = base64.b64decode(data.rpartition(b"STRONGROOM-KEY-1 ")[2])
        if blake3(LABELS["keyfile"] + secret[:32]).digest(4) != secret[32:]:
            say(f"{options.key_file} is no key file, or is damaged", 8)
        return "keyfile", secret[:32]
    if not options.code_file: return "passphrase", data
    text = data.decode("ascii", "replace").upper().translate(str.maketrans("ILO", "110"))
    letters = [ALPHABET.index(letter) for letter in text if letter in ALPHABET]
    if len(letters) != 40: say("a recovery code has 8 groups of 5 letters", 8)
    del letters[4::5]  # they only check the others
    bits = functools.reduce(lambda bits, letter: bits << 5 | letter, letters)
    return "recovery-code", bits.to_bytes(20, "big")

def open_slot(slot, kind, secret, repository):
    """The keyset in a key slot; what the slot asks for is bounded before it is paid."""
    parameters = slot["parameters"]
    salt = base64.b64decode(parameters["salt"])
    if kind == "passphrase":
        t, m, p = (parameters[name] for name in "tmp")
        if not (1 <= t <= 10 and 1 <= p <= 16 and 8 * p <= m <= 1 << 20 and t * m <= 2 << 20):
            raise ValueError(f"it asks for {t} passes over {m} KiB in {p} lanes")
        kdf = argon2.Argon2id(salt=salt, length=32, iterations=t, lanes=p, memory_cost=m)
    else:
        kdf = hkdf.HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=LABELS[kind])
    context = {name: slot[name] for name in ("created", "epoch", "label", "role")}
    bound = canonical({"kind": kind, "parameters": parameters}) + b"\nstrongroom key slot 1\n"
    bound += canonical({**context, "repository": repository.hex()})
    body = base64.b64decode(slot["body"])
    keyset = json.loads(AESGCM(kdf.derive(secret)).decrypt(body[:12], body[12:], bound))
    for name, value in keyset.items():
        if isinstance(value, str) and name not in ("role", "writer_name"):
            keyset[name] = base64.b64decode(value)
    return keyset

class Cursor:
    """Reads little-endian fields one after the other; ValueError past the end."""
    def __init__(self, data): self.data, self.at = data, 0
    def row(self, form): return next(self.rows(form, 1))
    def counted(self, form): return self.raw(*self.row(form))
    def more(self): return self.at < len(self.data)

    def raw(self, size):
        self.at += size
        if self.at > len(self.data): raise ValueError("it is cut short")
        return self.data[self.at - size : self.at]

    def rows(self, form, count):
        return struct.iter_unpack("<" + form, self.raw(struct.calcsize("<" + form) * count))

class Repository:
    """A repository in a directory, opened."""
    def __init__(self, folder, kind, secret, repository_id):
        self.folder, self.keysets, self.sessions, self.damaged = folder, {}, {}, 0
        self.frame, self.opener = functools.lru_cache(48)(self.frame), functools.cache(self.opener)
        identity = {} if repository_id else self.identity()
        self.id = bytes.fromhex(repository_id or identity["id"])
        for name in self.names("keys")[:128]:
            try:
                slot = json.loads(self.read(name, 0, 16384))
                if slot["kind"] != kind: continue
                keyset = open_slot(slot, kind, secret, self.id)
                if keyset["data_private"] or keyset["epoch"] not in self.keysets:
                    self.keysets[keyset["epoch"]] = keyset
            except BROKEN as fault: say(f"{name} does not open: {shown(fault)}")
        if not self.keysets: say(f"no key slot opens with this {kind}", 8)
        self.newest = self.keysets[max(self.keysets)]
        if identity and identity["admin"] != self.newest["admin_public"].hex():
            say("strongroom.json was signed by another admin than these keys know", 8)
        say(f"repository {self.id.hex()}: opened with the keys of a {self.newest['role']}")

    def identity(self):
        try:
            body = json.loads(self.read("strongroom.json"))
            signature, admin = body.pop("signature"), bytes.fromhex(body["admin"])
            verify(admin, signature, b"strongroom identity 1" + canonical(body))
            if body["format"] == 1: return body
            say(f"this file reads format 1, not {body['format']}", 2)
        except BROKEN as fault: say(f"strongroom.json: {shown(fault)}; --repository-id takes the kit's ID", 2)

    def names(self, top):
        found = glob.glob(f"{top}/**", root_dir=self.folder, recursive=True, include_hidden=True)
        return sorted(name for name in found if os.path.isfile(os.path.join(self.folder, name)))

    def read(self, name, offset=0, length=-1):
        with open(os.path.join(self.folder, name), "rb") as file:
            file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
            return file.read(length)

    def record(self, data, name, *kinds):
        """Open a sealed record: (kind, body)."""
        kind, bound = data[4:8], self.id + data[4:8] + name.encode()
        if data[:4] != b"SRM1" or kind not in kinds:
            raise ValueError("it is not a record of the kind that belongs here")
        for keyset in self.keysets.values():
            key = blake3(b"strongroom catalogue 1 " + kind, key=keyset["catalogue_key"]).digest()
            with contextlib.suppress(InvalidTag):
                return kind, Cursor(AESGCM(key).decrypt(data[8:20], data[20:], bound)).counted("I")
        raise ValueError("it does not authenticate")

    def snapshots(self):
        """Yield the body of every committed snapshot that verifies."""
        for name in self.names("snapshots"):
            try:
                kind, raw = self.record(self.read(name), name, b"snap", b"tomb")
                if kind == b"tomb": continue
                signed = json.loads(raw)
                body, signer = signed["body"], bytes.fromhex(signed["signer"])
                writer = self.id + body["epoch"].to_bytes(4, "little") + signer + body["writer"].encode()
                verify(self.newest["admin_public"], signed["certificate"], b"strongroom writer 1" + writer)
                verify(signer, signed["signature"], b"strongroom snapshot 1" + canonical(body))
                if name.split("/")[1] != body["source"] or name.split("-")[-1] != body["id"]:
                    raise ValueError("it belongs under another name")
                yield body
            except BROKEN as fault: self.damaged = say(f"DAMAGED {name}: {shown(fault)}") or 3

    def load(self):
        """Learn where every chunk rests: the index, and pack footers, which say the same again."""
        self.db = sqlite3.connect("")  # a temporary file
        self.db.executescript(TABLES)
        for name in self.names("index") + self.names("packs") + self.names("trees"):
            top = name.split("/")[0]
            try:
                if top == "index":
                    self.add_segment(self.record(self.read(name), name, b"indx")[1])
                    continue
                length, _ = struct.unpack("<I4s", self.read(name, -8))
                footer = self.read(name, -8 - length, length)
                self.add_segment(self.record(footer, top, b"foot")[1], name)
            except BROKEN as fault: say(f"{name} does not say what rests where: {shown(fault)}")

    def add_segment(self, body, pack=None):
        data = Cursor(body)
        magic, version, sessions, packs, frames, chunks, _ = data.row("4sHHIIII")
        if (magic, version) != (b"SRIX", 1): raise ValueError("its version is not known")
        keys = [(*data.row("16sI"), data.counted("H")) for _ in range(sessions)]
        names = [(("packs", "trees")[tree], raw.hex()) for tree, raw in data.rows("B32s", packs)]
        names = [pack or f"{top}/{name[:2]}/{name}" for top, name in names]
        frames, ids, lengths = data.rows("6I", frames), data.rows("32s", chunks), data.rows("I", chunks)
        put = self.db.execute
        for session, sequence, number, place, size, count in frames:
            key, at = (keys[session][0], sequence), 0
            put("insert or ignore into frame values (?, ?, ?, ?, ?)", (*key, names[number], place, size))
            for (chunk,), (length,) in itertools.islice(zip(ids, lengths, strict=True), count):
                put("insert or ignore into chunk values (?, ?, ?, ?, ?)", (chunk, *key, at, length))
                at += length
        self.sessions.update({session: (epoch, sealed) for session, epoch, sealed in keys})

    def chunk(self, kind, wanted):
        """The chunk of this id, verified; every place where it may rest is tried."""
        key = blake3(b"strongroom chunk id 1 " + kind, key=self.newest["id_key"]).digest()
        reason = f"chunk {wanted.hex()} is in no index segment and in no pack's footer"
        for *frame, at, length in self.db.execute(PLACES, (wanted,)).fetchall():
            try:
                part = self.frame(*frame)[at : at + length]
                if blake3(part, key=key).digest() == wanted: return part
                reason = f"a chunk in {frame[2]} is not what its id says"
            except BROKEN as fault: reason = f"a frame in {frame[2]}: {shown(fault)}"
        raise ValueError(reason)

    def frame(self, session, sequence, pack, place, size):
        sealed = self.read(pack, place, min(size, 2 * MAX_PLAIN))
        bound = b"frame" + session + sequence.to_bytes(8, "little")
        packed = self.opener(session).decrypt(sequence.to_bytes(12, "little"), sealed, bound)
        unpacker = zstd.ZstdDecompressor()
        plain = unpacker.decompress(packed, MAX_PLAIN)
        if not unpacker.eof or unpacker.unused_data: raise ValueError("it is too long")
        return plain

    def opener(self, session):
        epoch, sealed = self.sessions[session]
        private = self.keysets[epoch]["data_private"]
        lattice = mlkem.MLKEM768PrivateKey.from_seed_bytes(private[:64])
        curve = x25519.X25519PrivateKey.from_private_bytes(private[64:])
        pair = hpke.MLKEM768X25519PrivateKey(lattice, curve)
        info = b"strongroom session key 1" + self.id + epoch.to_bytes(4, "little") + session
        return AESGCM(SUITE.decrypt(sealed, pair, info=info))

    def entries(self, node, under, lost):
        """Yield what is at and below a path, in order; `lost` hears of pages that are not had."""
        (page, count, first), level = node
        rows, low = [], under.rstrip(b"/")
        try:
            data = Cursor(self.chunk(b"tree", page))
            while data.more():
                rows.append((*data.row("32sI"), data.counted("H")) if level else entry(data, rows))
        except BROKEN as fault:
            lost(first, f"and what follows it, {count} entries: {shown(fault)}")
            return
        for row, after in itertools.zip_longest(rows, rows[1:]):
            if not level:
                if (row.path + b"/").startswith(under): yield row
            elif not low or (row[2] < low + b"0" and (after is None or after[2] > low)):
                yield from self.entries((row, level - 1), under, lost)

    def pieces(self, entry):
        """Yield (offset, bytes) of a content, ascending; what is not covered is a hole."""
        tag, body, end = entry.content[:1], entry.content[1:], 0
        if tag not in (b"", b"\1", b"\2", b"\3"): raise ValueError("its content is of no known kind")
        pages = (struct.pack("<QIII32s", 0, entry.size, 0, 1, body) if tag == b"\1" else body,)
        if tag == b"\3":
            pages = (self.chunk(b"extents", body[at : at + 32]) for at in range(0, len(body), 32))
        for page in pages:
            for start, length, offset, repeats, chunk in struct.iter_unpack("<QIII32s", page):
                piece = self.chunk(b"data", chunk)[offset : offset + length]
                begin, end = end, start + length * repeats
                if start < begin or not length * repeats or len(piece) != length or end > entry.size:
                    raise ValueError("its extents contradict themselves")
                yield from ((start + number * length, piece) for number in range(repeats))

def entry(page, before):
    """The entry at the cursor of a page; `before` are those that stand before it."""
    shared, rest, length = page.row("HHI")
    path = (before[-1].path[:shared] if before else b"") + page.raw(rest)
    if before and path <= before[-1].path: raise ValueError("it is out of order")
    data = Cursor(page.raw(length))
    *numbers, size = data.row("BBHIIqQI")
    (kind, flags, *_), content = numbers, data.raw(size)
    target = data.counted("H") if flags & 1 else b""
    rdev = data.row("Q")[0] if flags & 2 else 0
    count = data.row("H")[0] if flags & 4 else 0
    xattrs = [(data.counted("H"), data.counted("I")) for _ in range(count)]
    if data.more() or flags > 7 or not FILE <= kind <= STREAM: raise ValueError("it does not decode")
    return Entry(path, *numbers, content, target, rdev, xattrs)

class Target:
    """A directory that is filled; nothing is ever written through a symlink."""
    def __init__(self, folder, repository, root, under):
        os.makedirs(folder, 0o700, exist_ok=True)
        if os.listdir(folder): say(f"{folder} is not empty; nothing was written", 4)
        self.repository, self.root, self.under = repository, root, under
        self.top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.fd, self.open, self.folders = os.dup(self.top), [], []
        self.losses, self.unset = 0, collections.Counter()

    def lost(self, path, reason):
        self.losses += 1
        say(f"LOST {shown(path)}: {reason}")

    def fill(self):
        count = 0
        for entry in self.repository.entries(self.root, self.under, self.lost):
            try:
                self.place(entry)
                count += 1
            except BROKEN as fault: self.lost(entry.path, shown(fault))
        for entry in reversed(self.folders):  # last and from below, so that what is set stays
            self.facts(entry, *self.parent(entry.path))
        os.sync()
        for fact, number in self.unset.items(): say(f"{fact} failed on {number} entries")
        say(f"{count} entries restored, {self.losses} lost")
        return 3 if self.losses or not count else 0

    def parent(self, path):
        """An open directory and the name in it; the root is "." in itself."""
        if not path: return self.top, b"."
        *folder, name = path.split(b"/")
        if {b"", b".", b".."} & {*folder, name} or b"\0" in path:
            raise ValueError("its path leads out of the target, or nowhere")
        if folder != self.open:
            os.close(self.fd)
            self.fd, self.open = os.dup(self.top), []
            for part in folder:
                with contextlib.suppress(FileExistsError): os.mkdir(part, 0o700, dir_fd=self.fd)
                above, self.fd = self.fd, os.open(part, A_FOLDER, dir_fd=self.fd)
                os.close(above)
                self.open.append(part)
        return self.fd, name

    def place(self, entry):
        if entry.kind == HARDLINK and not (entry.target + b"/").startswith(self.under):
            found = self.repository.entries(self.root, entry.target + b"/", self.lost)
            entry = next(found, entry)._replace(path=entry.path)  # its first name lies outside of --path
        if entry.kind == HARDLINK: at, first = self.parent(entry.target); at = os.dup(at)  # noqa: E702
        fd, name = self.parent(entry.path)
        if entry.kind == HARDLINK:
            try: os.link(first, name, src_dir_fd=at, dst_dir_fd=fd, follow_symlinks=False)
            finally: os.close(at)
        elif entry.kind == DIRECTORY:
            if entry.path: os.mkdir(name, 0o700, dir_fd=fd)
            self.folders.append(entry)
        elif entry.kind in (FILE, STREAM): self.write(entry, fd, name)
        elif entry.kind == SYMLINK: os.symlink(entry.target, name, dir_fd=fd)
        else: os.mknod(name, NODES[entry.kind] | 0o600, entry.rdev, dir_fd=fd)
        if entry.kind not in (DIRECTORY, HARDLINK): self.facts(entry, fd, name)

    def write(self, entry, fd, name):
        with open(os.open(name, NEW_FILE, 0o600, dir_fd=fd), "wb") as file:
            try:
                for offset, piece in self.repository.pieces(entry):
                    file.seek(offset)
                    file.write(piece)
                file.truncate(entry.size)
            except BaseException:
                os.unlink(name, dir_fd=fd)
                raise

    def facts(self, entry, fd, name):
        def attempt(call, *arguments, **options):
            try: return call(*arguments, **options) is None
            except (OSError, OverflowError): self.unset[call.__name__] += 1
        path, here = b"/proc/self/fd/%d/%s" % (fd, name), {"dir_fd": fd, "follow_symlinks": False}
        owned = attempt(os.chown, name, entry.uid, entry.gid, **here)
        mode = entry.mode if owned else entry.mode & 0o1777  # never set-id for another owner
        for pair in entry.xattrs: attempt(os.setxattr, path, *pair, follow_symlinks=False)
        if entry.kind != SYMLINK: attempt(os.chmod, name, mode, dir_fd=fd)
        attempt(os.utime, name, ns=(entry.mtime, entry.mtime), **here)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", required=True, metavar="DIR")
    parser.add_argument("--repository-id", metavar="ID", help="where strongroom.json is lost")
    holder = parser.add_mutually_exclusive_group(required=True)
    for way in ("--passphrase-file", "--key-file", "--code-file"): holder.add_argument(way, metavar="F")
    parser.add_argument("verb", choices=("list", "restore"))
    for name in ("snapshot", "dest"): parser.add_argument(name, nargs="?", help="for restore")
    parser.add_argument("--path", default="", help="only what is at and below this path")
    options = parser.parse_args()
    if options.verb == "restore" and not options.dest: parser.error("restore SNAPSHOT DEST")
    repository = Repository(options.repository, *secret_of(options), options.repository_id)
    found = sorted(repository.snapshots(), key=lambda body: body["time"])
    if options.verb == "list":
        for body in found:
            print(*(shown(body[name]) for name in ("id", "time", "source", "kind", "files", "size")))
        return repository.damaged
    wanted = [body for body in found if body["source"] == options.snapshot][-1:]
    wanted = wanted or [body for body in found if body["id"].startswith(options.snapshot)]
    if len(wanted) != 1: say(f"{len(wanted)} snapshots go by that name; `list` shows them", 5)
    if repository.newest["role"] != "reader": say("these keys only write; give a reader's", 8)
    (page, levels, count), under = wanted[0]["root"], os.fsencode(options.path).strip(b"/")
    say(f"restoring {wanted[0]['id']} of {wanted[0]['source']} into {options.dest}")
    repository.load()
    root = ((bytes.fromhex(page), count, b""), levels)  # as a row of the page above would name it
    return Target(options.dest, repository, root, under + b"/" if under else b"").fill()

if __name__ == "__main__":
    sys.exit(main())
