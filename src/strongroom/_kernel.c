/* The few loops of Strongroom that Python is too slow for.
 *
 * Rule of this file: every function has a twin in kernel.py, and the twin is the
 * specification. Nothing here decides anything: names and descriptors come in, bytes
 * and error numbers go out. The GIL is released around every system call and every
 * long loop; signals are looked at between batches; nothing is kept between calls.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

/* ------------------------------------------------------------ chunker proposals */

/* First four bytes, little endian, of BLAKE3("strongroom gear 1" || byte). */
static const uint32_t GEAR[256] = {
    0x2932824au, 0xcc769da0u, 0x47d6f9aau, 0x8b8a1c37u, 0x2923dd90u, 0xb2323d1bu, 0x6077987au, 0x61756c7cu,
    0x8e3f9466u, 0xf016532fu, 0x1f108b57u, 0x73f1ffaeu, 0xb99fa8b2u, 0xffa5e80eu, 0xdc1ac9ebu, 0x5b99037fu,
    0x8e3f2540u, 0x8fedb3a7u, 0x87766a73u, 0x2a045c17u, 0x00d2d385u, 0x5a752160u, 0x8d4407d8u, 0x365ceabbu,
    0xb85c74adu, 0xf9b1893au, 0x759eac21u, 0x7dad6c13u, 0x432e01ccu, 0x14147e60u, 0x0f6ed87cu, 0xf04a786bu,
    0xf9fe7d6au, 0x3bb433c0u, 0x70e8089du, 0xee15f335u, 0x929a98ddu, 0x30d583e5u, 0x227be1ddu, 0xfde6f688u,
    0x4860df82u, 0xa5a0b2b1u, 0x926ad358u, 0xa585a69au, 0xce35b1fbu, 0x2293925cu, 0xfb5e8495u, 0xed06fcffu,
    0xd51ff97bu, 0xf26ecc33u, 0x0d5792f8u, 0x1569da21u, 0xa4abc028u, 0x93c8ce80u, 0x8d713150u, 0x9130d064u,
    0x936622dfu, 0x112c912eu, 0x31971efbu, 0x223202a7u, 0xfdc405dcu, 0x31907349u, 0x4ad69dbau, 0xa1c40e1eu,
    0xd8bcd8deu, 0x920d3702u, 0x0d45c979u, 0xe5ff8268u, 0xe0ffcfebu, 0xfb4fab9fu, 0x08297767u, 0x1ebf3decu,
    0x656afc52u, 0x3102642du, 0x1ee64463u, 0x1d96a59fu, 0x598f5bd6u, 0x0bbc9690u, 0x1ed4c865u, 0xbd9a0b67u,
    0x22f3f1a5u, 0x673c293fu, 0x53c75338u, 0xea7d4d1eu, 0xba7999e9u, 0x64734125u, 0xe5c68be7u, 0x15ef3b61u,
    0xe76de699u, 0x680f47dcu, 0xcc62c3f8u, 0xd56c6517u, 0x7238a6edu, 0x5ae0f91cu, 0x290dde2eu, 0xeab7afe0u,
    0x67444d33u, 0x3ec591d1u, 0x2a683b9du, 0x6d419f90u, 0xfa94b0fcu, 0xf73b95fbu, 0xe4ea5893u, 0xf5fc2205u,
    0xecf8ee66u, 0x2df1d8d1u, 0x02f945a2u, 0x69ab15feu, 0xa7259711u, 0xac7c63b4u, 0x384e1ebau, 0xa6ddb56du,
    0x523a639du, 0x190383ceu, 0x986955f7u, 0xee35a1afu, 0xadddde3eu, 0x055efed9u, 0x79a997c8u, 0xd8fbbd14u,
    0x01aa1319u, 0xc147f28fu, 0x425460dfu, 0xfe8437bau, 0xa2d6b858u, 0xf80fab90u, 0xedcfe54cu, 0x45d1d8f4u,
    0x0120eb75u, 0xaf16cea6u, 0xd715b45au, 0x3b81d737u, 0x8a0afdebu, 0xa7dfe61bu, 0xeebce035u, 0x6e2146e4u,
    0x0c0078e0u, 0x1396ef9eu, 0x4bdc39f9u, 0xb7083383u, 0x2a4b40f9u, 0x4e72c8ddu, 0x6556f9adu, 0x6e305071u,
    0x9ca3f8e9u, 0x9508c4cfu, 0xc26eac59u, 0x1f8f6d2fu, 0x1c3788dfu, 0x77aecee3u, 0xe1bfba95u, 0xe34d202du,
    0x8cdc1e54u, 0x19ac0dfbu, 0x60b458dbu, 0x9c64cb86u, 0xabdcf741u, 0x33b24f36u, 0x7728c67cu, 0x69ee7de7u,
    0x71f482ecu, 0x04eed49fu, 0x899df477u, 0xef83b6aau, 0xc40856ecu, 0x9746b41eu, 0x9657ec5cu, 0x2830fcd5u,
    0x1704108eu, 0xb8ac525du, 0x99a21405u, 0xc17f340du, 0xfee68f6fu, 0xc80d20d4u, 0x36623794u, 0x352ca74bu,
    0xde93cf6au, 0xc7fe0094u, 0xc3f8394fu, 0xfa7f8d06u, 0x25e9e961u, 0xab8432abu, 0xb863b87eu, 0x3a3a3b63u,
    0xc2781cefu, 0x1063acdcu, 0xc603ec0eu, 0x50c071e5u, 0x7d90f2fau, 0x3c0b5a65u, 0xd962378bu, 0xba5c052fu,
    0x4b970bc9u, 0xe0d4341eu, 0x33496608u, 0x365e3e8eu, 0xc1b22809u, 0x636b596du, 0x77033398u, 0x2258f175u,
    0x9b6633eeu, 0xec912d7bu, 0x2017633du, 0x4234c554u, 0x04a51046u, 0x731ab638u, 0x9c73f12eu, 0x3135f90eu,
    0x89294590u, 0x1b7a4858u, 0xde447ec7u, 0xeb85ca65u, 0x976d396au, 0x9aacbb49u, 0xf12b3806u, 0xe10dfa7au,
    0x50df9569u, 0x1284016cu, 0x34ecd8fau, 0x33e42130u, 0x66a00eb7u, 0x5b072ff2u, 0x91ea86f4u, 0xcbfdc54du,
    0x1839d779u, 0x4866e126u, 0x492954a4u, 0xbdf0c0cfu, 0xfe92ef11u, 0xd9d6fdb2u, 0x6e790b35u, 0x7ebb92b9u,
    0x38e14078u, 0xceda9670u, 0x66b22a30u, 0x6268347eu, 0x25f06bf2u, 0xc3d4a53cu, 0xef022aebu, 0x8ea08aecu,
    0x57a07954u, 0x54cd1f3du, 0xb3b75accu, 0xf75a0e4fu, 0x142a70b0u, 0xcc7e7b90u, 0x511ec097u, 0x96f01d3eu,
    0xecb59439u, 0x6f3fc711u, 0xa4a02f74u, 0x5f5193a6u, 0xb2429e20u, 0x0e766368u, 0x69df48c2u, 0x0c3297ddu,
};

#define WINDOW 32
#define LANES 4

typedef struct {
    uint32_t *at;
    size_t used, room;
} hits;

static int hits_grow(hits *h)
{
    size_t room = h->room ? h->room * 2 : 1024;
    uint32_t *at = PyMem_RawRealloc(h->at, room * sizeof(uint32_t));
    if (!at)
        return -1;
    h->at = at;
    h->room = room;
    return 0;
}

static inline int hits_add(hits *h, size_t offset)
{
    if (h->used == h->room && hits_grow(h) < 0)
        return -1;
    h->at[h->used++] = (uint32_t)offset;
    return 0;
}

/* The hash over the bytes before `start`: 32-bit arithmetic forgets what is older. */
static uint32_t warm(const uint8_t *data, size_t start)
{
    uint32_t h = 0;
    for (size_t i = start - (WINDOW - 1); i < start; i++)
        h = (h << 1) + GEAR[data[i]];
    return h;
}

/* Hash data[start, end) on one lane; `start` has at least WINDOW - 1 bytes before it. */
static int propose_one(const uint8_t *data, size_t start, size_t end, uint32_t mask, hits *out)
{
    uint32_t h = warm(data, start);
    for (size_t i = start; i < end; i++) {
        h = (h << 1) + GEAR[data[i]];
        if (__builtin_expect(!(h & mask), 0) && hits_add(out, i + 1) < 0)
            return -1;
    }
    return 0;
}

/* Hash four equal runs side by side: one run alone waits for its own additions. */
static int propose_lanes(const uint8_t *data, size_t start, size_t run, uint32_t mask,
                         hits out[LANES])
{
    const uint8_t *p0 = data + start, *p1 = p0 + run, *p2 = p1 + run, *p3 = p2 + run;
    uint32_t h0 = warm(data, start), h1 = warm(data, start + run);
    uint32_t h2 = warm(data, start + 2 * run), h3 = warm(data, start + 3 * run);
    for (size_t i = 0; i < run; i++) {
        h0 = (h0 << 1) + GEAR[p0[i]];
        h1 = (h1 << 1) + GEAR[p1[i]];
        h2 = (h2 << 1) + GEAR[p2[i]];
        h3 = (h3 << 1) + GEAR[p3[i]];
        if (__builtin_expect(!(h0 & mask), 0) && hits_add(&out[0], start + i + 1) < 0)
            return -1;
        if (__builtin_expect(!(h1 & mask), 0) && hits_add(&out[1], start + run + i + 1) < 0)
            return -1;
        if (__builtin_expect(!(h2 & mask), 0) && hits_add(&out[2], start + 2 * run + i + 1) < 0)
            return -1;
        if (__builtin_expect(!(h3 & mask), 0) && hits_add(&out[3], start + 3 * run + i + 1) < 0)
            return -1;
    }
    return 0;
}

static int propose(const uint8_t *data, size_t size, uint32_t mask, hits out[LANES])
{
    size_t start = WINDOW - 1;
    if (size < WINDOW)
        return 0;
    size_t run = (size - start) / LANES;
    if (run >= WINDOW) {
        if (propose_lanes(data, start, run, mask, out) < 0)
            return -1;
        start += LANES * run;
    }
    return propose_one(data, start, size, mask, &out[LANES - 1]);
}

static PyObject *join_hits(const hits out[LANES])
{
    size_t total = 0;
    for (int lane = 0; lane < LANES; lane++)
        total += out[lane].used;
    PyObject *joined = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(total * sizeof(uint32_t)));
    if (!joined)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AS_STRING(joined);
    for (int lane = 0; lane < LANES; lane++)
        for (size_t i = 0; i < out[lane].used; i++, to += 4) {
            uint32_t v = out[lane].at[i];
            to[0] = (uint8_t)v, to[1] = (uint8_t)(v >> 8);
            to[2] = (uint8_t)(v >> 16), to[3] = (uint8_t)(v >> 24);
        }
    return joined;
}

PyDoc_STRVAR(candidates_doc, "candidates(data, mask) -> bytes of u32 little-endian offsets");

static PyObject *candidates(PyObject *module, PyObject *args)
{
    Py_buffer view;
    unsigned long mask;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*k:candidates", &view, &mask))
        return NULL;
    if (mask > UINT32_MAX || (uint64_t)view.len > UINT32_MAX) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "data and mask are limited to 32 bits");
        return NULL;
    }
    hits out[LANES] = {{0}};
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = propose(view.buf, (size_t)view.len, (uint32_t)mask, out);
    Py_END_ALLOW_THREADS
    PyObject *joined = failed < 0 ? PyErr_NoMemory() : join_hits(out);
    for (int lane = 0; lane < LANES; lane++)
        PyMem_RawFree(out[lane].at);
    PyBuffer_Release(&view);
    return joined;
}

/* ---------------------------------------------------------------- archive blocks */

#define BLOCK_HEAD 5 /* kernel.BLOCK_HEAD: a sign, and the length as u32 little endian */

typedef struct {
    size_t made, used, rest;
    int ended;
} joined;

static uint8_t *block_head(uint8_t *to, size_t length)
{
    *to++ = 0;
    for (int i = 0; i < 4; i++)
        *to++ = (uint8_t)(length >> (8 * i));
    return to;
}

/* `out` has room for as much as comes in. -1 when a length is negative. */
static int join(const uint8_t *in, size_t size, size_t most, uint8_t *out, joined *result)
{
    uint8_t *to = out, *open = NULL; /* `open`: head of the block that is being filled */
    size_t at = 0, filled = 0;
    while (size - at >= BLOCK_HEAD && !result->ended && !result->rest) {
        const uint8_t *b = in + at;
        size_t length = b[1] | (size_t)b[2] << 8 | (size_t)b[3] << 16 | (size_t)b[4] << 24;
        size_t here = size - at - BLOCK_HEAD;
        if (b[0])
            return -1;
        if (here > length)
            here = length;
        if (!open || !length || here < length || filled + length > most) {
            if (open)
                block_head(open, filled);
            open = here == length && length ? to : NULL;
            to = block_head(to, length);
            filled = 0;
            result->ended = !length;
            result->rest = length - here;
        }
        memcpy(to, b + BLOCK_HEAD, here);
        to += here;
        filled += here;
        at += BLOCK_HEAD + here;
    }
    if (open)
        block_head(open, filled);
    result->made = (size_t)(to - out);
    result->used = at;
    return 0;
}

PyDoc_STRVAR(join_blocks_doc, "join_blocks(data, most) -> (joined, used, rest, ended)");

static PyObject *join_blocks(PyObject *module, PyObject *args)
{
    Py_buffer view;
    Py_ssize_t most;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*n:join_blocks", &view, &most))
        return NULL;
    joined result = {0, 0, 0, 0};
    int failed = most < 0 || most > INT32_MAX;
    PyObject *out = PyBytes_FromStringAndSize(NULL, view.len);
    if (out && !failed) {
        uint8_t *room = (uint8_t *)PyBytes_AS_STRING(out);
        Py_BEGIN_ALLOW_THREADS
        failed = join(view.buf, (size_t)view.len, (size_t)most, room, &result);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    if (!out || failed) {
        Py_XDECREF(out);
        if (failed)
            PyErr_SetString(PyExc_ValueError, "no block has a negative length");
        return NULL;
    }
    if (_PyBytes_Resize(&out, (Py_ssize_t)result.made) < 0)
        return NULL;
    return Py_BuildValue("(NnnN)", out, (Py_ssize_t)result.used, (Py_ssize_t)result.rest,
                         PyBool_FromLong(result.ended));
}

/* ------------------------------------------------------------------- file facts */

/* Layout of kernel.STAT: the first KEY_SIZE bytes are kernel.KEY. */
#define KEY_SIZE 56
#define EXTRA_SIZE 16
#define STAT_SIZE (KEY_SIZE + EXTRA_SIZE)
#define BATCH 256

static uint8_t *put32(uint8_t *to, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        to[i] = (uint8_t)(v >> (8 * i));
    return to + 4;
}

static uint8_t *put64(uint8_t *to, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        to[i] = (uint8_t)(v >> (8 * i));
    return to + 8;
}

/* Nanoseconds since 1970, held at the ends of what 64 bits can say. */
static int64_t nanoseconds(struct timespec t)
{
    int64_t ns;
    if (__builtin_mul_overflow((int64_t)t.tv_sec, (int64_t)1000000000, &ns) ||
        __builtin_add_overflow(ns, (int64_t)t.tv_nsec, &ns))
        return t.tv_sec < 0 ? INT64_MIN : INT64_MAX;
    return ns;
}

static void pack_stat(uint8_t *to, const struct stat *st)
{
    to = put32(to, (uint32_t)st->st_mode);
    to = put32(to, st->st_nlink > UINT32_MAX ? UINT32_MAX : (uint32_t)st->st_nlink);
    to = put32(to, (uint32_t)st->st_uid);
    to = put32(to, (uint32_t)st->st_gid);
    to = put64(to, (uint64_t)st->st_rdev);
    to = put64(to, (uint64_t)st->st_ino);
    to = put64(to, (uint64_t)st->st_size);
    to = put64(to, (uint64_t)nanoseconds(st->st_mtim));
    to = put64(to, (uint64_t)nanoseconds(st->st_ctim));
    to = put64(to, (uint64_t)st->st_dev);
    put64(to, (uint64_t)st->st_blocks);
}

/* A block of memory that grows; the GIL is not needed for it. */
typedef struct {
    uint8_t *at;
    size_t used, room;
} arena;

static uint8_t *arena_take(arena *a, size_t size)
{
    if (a->room - a->used < size) {
        size_t room = a->room ? a->room * 2 : 4096;
        while (room - a->used < size)
            room *= 2;
        uint8_t *at = PyMem_RawRealloc(a->at, room);
        if (!at)
            return NULL;
        a->at = at;
        a->room = room;
    }
    a->used += size;
    return a->at + a->used - size;
}

/* ------------------------------------------------------------ write-ahead log */

static uint32_t CRC_TABLE[8][256]; /* filled when the module is made */

static void fill_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c >> 1 ^ (c & 1 ? 0x82f63b78u : 0);
        CRC_TABLE[0][i] = c;
    }
    for (int row = 1; row < 8; row++)
        for (int i = 0; i < 256; i++)
            CRC_TABLE[row][i] = CRC_TABLE[row - 1][i] >> 8 ^ CRC_TABLE[0][CRC_TABLE[row - 1][i] & 255];
}

static uint16_t load16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t load32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t load64(const uint8_t *p)
{
    return load32(p) | (uint64_t)load32(p + 4) << 32;
}

static uint32_t crc_portable(uint32_t c, const uint8_t *p, size_t n)
{
    for (; n >= 8; p += 8, n -= 8) {
        uint32_t low = load32(p) ^ c, high = load32(p + 4);
        c = CRC_TABLE[7][low & 255] ^ CRC_TABLE[6][low >> 8 & 255] ^ CRC_TABLE[5][low >> 16 & 255] ^
            CRC_TABLE[4][low >> 24] ^ CRC_TABLE[3][high & 255] ^ CRC_TABLE[2][high >> 8 & 255] ^
            CRC_TABLE[1][high >> 16 & 255] ^ CRC_TABLE[0][high >> 24];
    }
    for (; n; p++, n--)
        c = c >> 8 ^ CRC_TABLE[0][(c ^ *p) & 255];
    return c;
}

static uint32_t (*crc_of)(uint32_t, const uint8_t *, size_t) = crc_portable;

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t c, const uint8_t *p, size_t n)
{
    uint64_t wide = c;
    for (; n >= 8; p += 8, n -= 8)
        wide = __builtin_ia32_crc32di(wide, load64(p));
    for (c = (uint32_t)wide; n; p++, n--)
        c = __builtin_ia32_crc32qi(c, *p);
    return c;
}
#endif

static void choose_crc(void)
{
    fill_crc_table();
#ifdef __x86_64__
    if (__builtin_cpu_supports("sse4.2"))
        crc_of = crc_sse42;
#endif
}

/* CRC-32C of more data after data whose sum is `before`. */
static uint32_t crc32c(uint32_t before, const uint8_t *p, size_t n)
{
    return ~crc_of(~before, p, n);
}

PyDoc_STRVAR(crc32c_doc, "_crc32c(data, before, portable) -> int; for tests");

static PyObject *py_crc32c(PyObject *module, PyObject *args)
{
    Py_buffer view;
    unsigned int before;
    int portable;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*Ip:_crc32c", &view, &before, &portable))
        return NULL;
    uint32_t sum = portable ? ~crc_portable(~before, view.buf, (size_t)view.len)
                            : crc32c(before, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(sum);
}

enum { XLOG, XACT, TABLESPACE = 5 };                     /* resource managers */
enum { CONTINUES = 1, LONG = 2, OVERWRITES = 8, PAGE_INFO = 15 }; /* xlp_info */
#define SHORT_HEAD 24
#define LONG_HEAD 40
#define RECORD_XHEAD 24 /* XLogRecord */
#define RECORD_MOST (1u << 30)
#define WIDER_STATISTICS 0xD117
#define STATE_SIZE 48 /* kernel._UNFINISHED */
#define END_SIZE 32
#define WRITER_SIZE 16

typedef struct {
    uint32_t xid, part_of;
    uint64_t bytes, folded;
} writer;

/* Open addressing, at most half full; xid 0 is an empty place. */
typedef struct {
    writer *at;
    size_t used, room;
} writers;

static writer *writers_find(writers *w, uint32_t xid)
{
    size_t i = xid * 2654435769u & (w->room - 1);
    while (w->at[i].xid && w->at[i].xid != xid)
        i = (i + 1) & (w->room - 1);
    return &w->at[i];
}

static writer *writers_get(writers *w, uint32_t xid)
{
    if (w->used * 2 >= w->room) {
        writers more = {NULL, w->used, w->room ? w->room * 2 : 1024};
        if (!(more.at = PyMem_RawCalloc(more.room, sizeof(writer))))
            return NULL;
        for (size_t i = 0; i < w->room; i++)
            if (w->at[i].xid)
                *writers_find(&more, w->at[i].xid) = w->at[i];
        PyMem_RawFree(w->at);
        *w = more;
    }
    writer *found = writers_find(w, xid);
    if (!found->xid) {
        found->xid = xid;
        w->used++;
    }
    return found;
}

/* A record as far as it has come. Without a `start` its head is not known: it is passed over. */
typedef struct {
    uint64_t start, here;
    uint32_t total, got, crc;
    uint8_t head[RECORD_XHEAD];
    arena body;             /* kept only of what is told of, and only when it is in parts */
    const uint8_t *content; /* of the body: in the arena, or in the segment itself */
    int open;
} wal_record;

typedef struct {
    uint64_t start, end;
    size_t main, length; /* in `text` */
    uint16_t what;          /* manager << 8 | info */
} wal_note;

typedef struct {
    const uint8_t *data;
    size_t size, segment, page;
    uint64_t base, previous, first, last, commits, aborts, largest_bytes;
    int64_t least, greatest, greatest_end;
    uint32_t timeline, largest;
    uint16_t magic;
    int whole, switched, detail;
    wal_record record;
    arena notes, text, ends;
    writers writers;
} wal_walk;

static size_t head_there(const wal_record *r)
{
    return r->got < RECORD_XHEAD ? r->got : RECORD_XHEAD;
}

static int is_told(const wal_record *r)
{
    uint8_t info = r->head[16] & 0xF0, manager = r->head[17];
    if (!r->start || r->got < RECORD_XHEAD)
        return 0;
    return manager == XACT ||
           (manager == XLOG && (info == 0x00 || info == 0x10 || info == 0x40 || info == 0x70 ||
                                info == 0x90 || info == 0xD0)) ||
           (manager == TABLESPACE && info == 0x00);
}

static int feed(wal_walk *w, const uint8_t *part, size_t n)
{
    wal_record *r = &w->record;
    size_t lacking = RECORD_XHEAD - head_there(r), taken = n < lacking ? n : lacking;
    r->here += n;
    if (!r->start) {
        r->got += (uint32_t)n;
        return 0;
    }
    memcpy(r->head + head_there(r), part, taken);
    r->got += (uint32_t)n;
    part += taken;
    n -= taken;
    r->crc = crc32c(r->crc, part, n);
    if (!n || !is_told(r))
        return 0;
    if (r->got == r->total && n == r->total - RECORD_XHEAD) {
        r->content = part;
        return 0;
    }
    uint8_t *to = arena_take(&r->body, n);
    if (!to)
        return -1;
    memcpy(to, part, n);
    r->content = r->body.at;
    return 0;
}

static int is_linked(const wal_record *r, uint64_t previous)
{
    if (!r->start || r->got < RECORD_XHEAD)
        return 1;
    uint64_t before = load64(r->head + 8);
    return previous ? before == previous : before < r->start;
}

static int is_sound(const wal_record *r)
{
    return !r->start || crc32c(r->crc, r->head, 20) == load32(r->head + 20);
}

/* The main data of a record without blocks; -1 when it has blocks, or is no such record. */
static int main_data(const uint8_t *body, size_t size, const uint8_t **main, size_t *length)
{
    size_t at = 0;
    *main = body;
    *length = 0;
    while (at < size) {
        const uint8_t *b = body + at;
        size_t rest = size - at, head = b[0] == 255 ? 2 : 5;
        if ((b[0] == 255 || b[0] == 254) && rest >= head) {
            *main = b + head;
            *length = rest - head;
            return (b[0] == 255 ? b[1] : load32(b + 1)) == *length ? 0 : -1;
        }
        if (b[0] != 252 && b[0] != 253)
            return -1;
        at += b[0] == 252 ? 5 : 3; /* top-level transaction; origin */
    }
    return 0;
}

/* Where the items behind the count at `at` end; 0 when they are not all there. */
static size_t counted(const uint8_t *main, size_t length, size_t at, size_t width)
{
    if (length < at + 4)
        return 0;
    uint64_t end = at + 4 + (uint64_t)load32(main + at) * width;
    return end <= length ? (size_t)end : 0;
}

static int tell_parts(wal_walk *w, uint32_t top, const uint8_t *parts, size_t size)
{
    for (; top && size; parts += 4, size -= 4) {
        uint32_t xid = load32(parts);
        writer *part;
        if (!xid || xid == top)
            continue;
        if (!writers_get(&w->writers, top) || !(part = writers_get(&w->writers, xid)))
            return -1;
        part->part_of = top;
    }
    return 0;
}

static int tell_end(wal_walk *w, uint64_t end, int aborted, int64_t time, uint32_t xid)
{
    if (!w->commits && !w->aborts)
        w->greatest_end = time;
    else if (time > w->greatest_end)
        w->greatest_end = time;
    if (!aborted && (!w->commits || time < w->least))
        w->least = time;
    if (!aborted && (!w->commits || time > w->greatest))
        w->greatest = time;
    aborted ? w->aborts++ : w->commits++;
    if (!w->detail)
        return 0;
    uint8_t *to = arena_take(&w->ends, END_SIZE);
    if (!to)
        return -1;
    to = put64(put64(put64(to, w->record.start), end), (uint64_t)time);
    put32(put32(to, xid), (uint32_t)aborted);
    return 0;
}

/* What a commit, an abort or an assignment says; the prepared transaction that it ends in *prepared. */
static int tell_transaction(wal_walk *w, uint64_t end, const uint8_t *main, size_t length,
                            uint32_t *prepared)
{
    static const struct {
        uint32_t flag, width;
    } lists[] = {{2, 4}, {4, 12}, {256, 12}, {8, 16}};
    const uint8_t *head = w->record.head, *parts = main;
    uint8_t what = head[16] & 0x70;
    size_t size = 0, at;
    if (what == 0x50) {
        at = counted(main, length, 4, 4);
        return at ? tell_parts(w, load32(main), main + 8, at - 8) : 0;
    }
    int aborted = what == 0x20 || what == 0x40;
    if (length < 8 || !(aborted || what == 0x00 || what == 0x30))
        return 0;
    if (head[16] & 0x80 && length >= 12) {
        uint32_t flags = load32(main + 8);
        at = flags & 1 ? 20 : 12;
        for (int i = 0; i < 4 && at; i++) {
            size_t from = at + 4, width = lists[i].width;
            if (!(flags & lists[i].flag))
                continue;
            if (lists[i].flag == 256 && w->magic >= WIDER_STATISTICS)
                width = 16;
            at = counted(main, length, at, width);
            if (at && lists[i].flag == 2)
                parts = main + from, size = at - from;
        }
        if (at && flags & 16 && length >= at + 4)
            *prepared = load32(main + at);
    }
    uint32_t xid = *prepared ? *prepared : load32(head + 4);
    if (tell_end(w, end, aborted, (int64_t)load64(main), xid) < 0)
        return -1;
    return tell_parts(w, xid, parts, size);
}

static int tell(wal_walk *w, uint64_t end, uint32_t *prepared)
{
    const wal_record *r = &w->record;
    const uint8_t *main;
    size_t length;
    uint8_t info = r->head[16] & 0xF0;
    if (r->head[17] == XLOG)
        w->switched = info == 0x40;
    if (main_data(r->content, r->total - RECORD_XHEAD, &main, &length) < 0)
        return 0;
    if (r->head[17] == XACT)
        return tell_transaction(w, end, main, length, prepared);
    wal_note *note = (wal_note *)arena_take(&w->notes, sizeof(wal_note));
    size_t at = w->text.used;
    uint8_t *text = length ? arena_take(&w->text, length) : NULL;
    if (!note || (length && !text))
        return -1;
    *note = (wal_note){r->start, end, at, length, (uint16_t)(r->head[17] << 8 | info)};
    if (length)
        memcpy(text, main, length);
    return 0;
}

static int count_record(wal_walk *w, uint32_t instead)
{
    const wal_record *r = &w->record;
    uint32_t xid = load32(r->head + 4);
    if (!w->first && r->start >= w->base)
        w->first = r->start;
    if (!xid)
        xid = instead;
    if (!xid)
        return 0;
    writer *found = writers_get(&w->writers, xid);
    if (!found)
        return -1;
    found->bytes += r->here;
    return 0;
}

static int record_done(wal_walk *w, uint64_t end)
{
    uint32_t prepared = 0;
    w->record.open = 0;
    w->last = end;
    w->previous = w->record.start;
    if (!w->record.start)
        return 0;
    if (is_told(&w->record) && tell(w, end, &prepared) < 0)
        return -1;
    return count_record(w, prepared);
}

static void open_record(wal_walk *w, uint64_t start, uint32_t total)
{
    wal_record *r = &w->record;
    r->start = start;
    r->total = total;
    r->here = r->got = r->crc = 0;
    memset(r->head, 0, sizeof r->head);
    r->body.used = 0;
    r->content = NULL;
    r->open = 1;
}

/* Go on with the record of `state` that has `rest` bytes to come, or with one that is not known. */
static int resume(wal_walk *w, const uint8_t *state, size_t size, uint32_t rest)
{
    wal_record *r = &w->record;
    if (!rest)
        return 0;
    if (size >= STATE_SIZE && load64(state + 8)) {
        size_t kept = size - STATE_SIZE;
        open_record(w, load64(state + 8), load32(state + 24));
        r->got = load32(state + 16);
        r->crc = load32(state + 20);
        memcpy(r->head, state + 24, head_there(r));
        size_t wanted = is_told(r) ? r->got - RECORD_XHEAD : 0;
        if (r->total >= RECORD_XHEAD && r->total <= RECORD_MOST && r->got >= 8 &&
            r->got < r->total && r->total - r->got == rest && kept == wanted) {
            uint8_t *to = kept ? arena_take(&r->body, kept) : NULL;
            if (kept && !to)
                return -1;
            if (kept)
                memcpy(to, state + STATE_SIZE, kept);
            r->content = r->body.at;
            w->previous = load64(state);
            return 0;
        }
    }
    open_record(w, 0, rest);
    return 0;
}

/* 1 when the log may go on behind `end`, 0 when it ends before, -1 without memory. */
static int walk_records(wal_walk *w, size_t at, size_t end)
{
    wal_record *r = &w->record;
    while (at < end) {
        if (!r->open) {
            if (end - at < 8)
                return 0;
            uint32_t total = load32(w->data + at);
            if (total < RECORD_XHEAD || total > RECORD_MOST)
                return 0;
            open_record(w, w->base + at, total);
        }
        size_t rest = r->total - r->got, n = rest < end - at ? rest : end - at;
        if (feed(w, w->data + at, n) < 0)
            return -1;
        at += n;
        if (r->got == r->total) {
            at = (at + 7) & ~(size_t)7;
            if (!is_linked(r, w->previous) || !is_sound(r))
                return 0;
            if (record_done(w, w->base + at) < 0)
                return -1;
            if (w->switched)
                return 0;
        }
    }
    return !r->open || is_linked(r, w->previous);
}

static int walk_page(wal_walk *w, size_t offset, const Py_buffer *state)
{
    const uint8_t *page = w->data + offset;
    size_t head = offset ? SHORT_HEAD : LONG_HEAD;
    size_t end = w->size - offset < w->page ? w->size : offset + w->page;
    if (end - offset < head)
        return 0;
    uint16_t info = load16(page + 2);
    uint32_t timeline = load32(page + 4), rest = info & CONTINUES ? load32(page + 16) : 0;
    if (load16(page) != w->magic || load64(page + 8) != w->base + offset || timeline < w->timeline)
        return 0;
    if (info & ~PAGE_INFO || !(info & LONG) != !!offset)
        return 0;
    w->timeline = timeline;
    if (!offset) {
        if (resume(w, state->buf, (size_t)state->len, rest) < 0)
            return -1;
    } else if (info & OVERWRITES)
        w->record.open = 0; /* its end was lost in a crash, and recovery says so here */
    if (rest != (w->record.open ? w->record.total - w->record.got : 0))
        return 0;
    return walk_records(w, offset + head, end);
}

/* Sizes of segment and page, by the long header; -1 when that is no such header. */
static int wal_sizes(wal_walk *w)
{
    if (w->size < LONG_HEAD)
        return -1;
    w->segment = load32(w->data + 32);
    w->page = load32(w->data + 36);
    w->magic = load16(w->data);
    if (w->segment & (w->segment - 1) || w->segment < 1u << 20 || w->segment > 1u << 30 ||
        w->base % w->segment)
        return -1;
    return w->page & (w->page - 1) || w->page < 1u << 10 || w->page > 1u << 16 ? -1 : 0;
}

static int fold_writers(wal_walk *w)
{
    writers *all = &w->writers;
    for (size_t i = 0; i < all->room; i++) {
        const writer *one = &all->at[i];
        if (one->xid)
            writers_find(all, one->part_of ? one->part_of : one->xid)->folded += one->bytes;
    }
    for (size_t i = 0; i < all->room; i++) {
        const writer *one = &all->at[i];
        if (one->folded > w->largest_bytes ||
            (one->folded && one->folded == w->largest_bytes && one->xid < w->largest)) {
            w->largest = one->xid;
            w->largest_bytes = one->folded;
        }
    }
    return 0;
}

static int walk_segment(wal_walk *w, const Py_buffer *state)
{
    size_t offset = 0;
    int good = 1;
    if (wal_sizes(w) < 0)
        return 0;
    if (w->size > w->segment)
        w->size = w->segment;
    for (; offset < w->size && good > 0; offset += w->page)
        good = walk_page(w, offset, state);
    if (good < 0)
        return -1;
    w->whole = good ? w->size == w->segment : w->switched;
    if (!w->whole)
        w->record.open = 0;
    if (w->record.open && w->record.start && count_record(w, 0) < 0)
        return -1;
    return fold_writers(w);
}

static PyObject *wal_notes(const wal_walk *w)
{
    size_t count = w->notes.used / sizeof(wal_note);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        const wal_note *note = (const wal_note *)w->notes.at + i;
        const char *text = note->length ? (const char *)w->text.at + note->main : "";
        PyObject *row = Py_BuildValue("(iKKy#)", note->what, (unsigned long long)note->start,
                                      (unsigned long long)note->end, text,
                                      (Py_ssize_t)note->length);
        if (row)
            PyList_SET_ITEM(list, (Py_ssize_t)i, row);
        else
            Py_CLEAR(list);
    }
    return list;
}

static int by_xid(const void *a, const void *b)
{
    uint32_t x = ((const writer *)a)->xid, y = ((const writer *)b)->xid;
    return x < y ? -1 : x > y;
}

static PyObject *wal_writers(wal_walk *w)
{
    writers *all = &w->writers;
    size_t count = 0;
    for (size_t i = 0; w->detail && i < all->room; i++)
        if (all->at[i].xid)
            all->at[count++] = all->at[i];
    PyObject *rows = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * WRITER_SIZE));
    if (!rows || !count)
        return rows;
    qsort(all->at, count, sizeof(writer), by_xid);
    uint8_t *to = (uint8_t *)PyBytes_AS_STRING(rows);
    for (size_t i = 0; i < count; i++)
        to = put64(put32(put32(to, all->at[i].xid), all->at[i].part_of), all->at[i].bytes);
    return rows;
}

static PyObject *wal_state(const wal_walk *w)
{
    const wal_record *r = &w->record;
    if (!r->open || !r->start)
        return PyBytes_FromStringAndSize(NULL, 0);
    PyObject *state = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(STATE_SIZE + r->body.used));
    if (!state)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AS_STRING(state);
    to = put32(put32(put64(put64(to, w->previous), r->start), r->got), r->crc);
    memcpy(to, r->head, RECORD_XHEAD);
    if (r->body.used)
        memcpy(to + RECORD_XHEAD, r->body.at, r->body.used);
    return state;
}

static PyObject *wal_result(wal_walk *w)
{
    PyObject *notes = wal_notes(w), *state = wal_state(w), *rows = wal_writers(w);
    PyObject *ends = PyBytes_FromStringAndSize((const char *)w->ends.at, (Py_ssize_t)w->ends.used);
    PyObject *counts = Py_BuildValue(
        "(KKiiKKLLLIK)", (unsigned long long)w->first, (unsigned long long)w->last, w->whole,
        w->switched, (unsigned long long)w->commits, (unsigned long long)w->aborts,
        (long long)w->least, (long long)w->greatest, (long long)w->greatest_end, w->largest,
        (unsigned long long)w->largest_bytes);
    if (notes && state && rows && ends && counts)
        return Py_BuildValue("(NNNNN)", counts, notes, ends, rows, state);
    Py_XDECREF(notes);
    Py_XDECREF(state);
    Py_XDECREF(rows);
    Py_XDECREF(ends);
    Py_XDECREF(counts);
    return NULL;
}

PyDoc_STRVAR(scan_wal_doc,
             "scan_wal(data, start, state=b'', detail=False) -> (counts, notes, ends, writers, state)");

static PyObject *scan_wal(PyObject *module, PyObject *args)
{
    Py_buffer data, state = {0};
    unsigned long long start;
    wal_walk w = {0};
    (void)module;
    if (!PyArg_ParseTuple(args, "y*K|y*p:scan_wal", &data, &start, &state, &w.detail))
        return NULL;
    w.data = data.buf;
    w.size = (size_t)data.len;
    w.base = start;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = walk_segment(&w, &state);
    Py_END_ALLOW_THREADS
    PyObject *result = failed < 0 ? PyErr_NoMemory() : wal_result(&w);
    PyMem_RawFree(w.record.body.at);
    PyMem_RawFree(w.notes.at);
    PyMem_RawFree(w.text.at);
    PyMem_RawFree(w.ends.at);
    PyMem_RawFree(w.writers.at);
    PyBuffer_Release(&data);
    if (state.obj)
        PyBuffer_Release(&state);
    return result;
}

/* -------------------------------------------------------------- scan a directory */

typedef struct {
    uint64_t inode;
    size_t name; /* offset in the arena */
    uint32_t length;
    int error;
    uint8_t stat[STAT_SIZE];
} seen;

typedef struct {
    arena names, items;
    int error; /* of the listing itself */
} listing;

static int read_names(DIR *directory, listing *out)
{
    struct dirent *entry;
    while (errno = 0, (entry = readdir(directory))) {
        const char *name = entry->d_name;
        if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
            continue;
        size_t length = strlen(name), at = out->names.used;
        uint8_t *text = arena_take(&out->names, length + 1);
        seen *item = (seen *)arena_take(&out->items, sizeof(seen));
        if (!text || !item)
            return -1;
        memcpy(text, name, length + 1);
        item->inode = entry->d_ino;
        item->name = at;
        item->length = (uint32_t)length;
        item->error = 0;
    }
    out->error = errno;
    return 0;
}

static int by_inode(const void *a, const void *b)
{
    uint64_t x = ((const seen *)a)->inode, y = ((const seen *)b)->inode;
    return x < y ? -1 : x > y;
}

static int by_name(const void *a, const void *b, void *names)
{
    const seen *x = a, *y = b;
    size_t shorter = x->length < y->length ? x->length : y->length;
    int order = memcmp((uint8_t *)names + x->name, (uint8_t *)names + y->name, shorter);
    return order ? order : x->length < y->length ? -1 : x->length > y->length;
}

static void stat_some(int fd, const listing *l, size_t from, size_t to)
{
    seen *items = (seen *)l->items.at;
    for (size_t i = from; i < to; i++) {
        struct stat st;
        const char *name = (const char *)l->names.at + items[i].name;
        int failed;
        do
            failed = fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT);
        while (failed && errno == EINTR);
        if (failed)
            items[i].error = errno;
        else
            pack_stat(items[i].stat, &st);
    }
}

static PyObject *failed_list(const listing *l, size_t count)
{
    const seen *items = (const seen *)l->items.at;
    PyObject *failed = PyList_New(0);
    for (size_t i = 0; failed && i < count + 1; i++) {
        int error = i < count ? items[i].error : l->error;
        if (!error)
            continue;
        PyObject *pair = i < count ? Py_BuildValue("(y#i)", l->names.at + items[i].name,
                                                   (Py_ssize_t)items[i].length, error)
                                   : Py_BuildValue("(y#i)", "", (Py_ssize_t)0, error);
        if (!pair || PyList_Append(failed, pair) < 0)
            Py_CLEAR(failed);
        Py_XDECREF(pair);
    }
    return failed;
}

static PyObject *listing_result(const listing *l, size_t count)
{
    const seen *items = (const seen *)l->items.at;
    size_t good = 0;
    for (size_t i = 0; i < count; i++)
        good += !items[i].error;
    PyObject *names = PyList_New((Py_ssize_t)good);
    PyObject *kinds = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)good);
    PyObject *keys = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(good * KEY_SIZE));
    PyObject *extras = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(good * EXTRA_SIZE));
    PyObject *failed = failed_list(l, count);
    if (!names || !kinds || !keys || !extras || !failed)
        goto fault;
    for (size_t i = 0, to = 0; i < count; i++) {
        if (items[i].error)
            continue;
        PyObject *name = PyBytes_FromStringAndSize((char *)l->names.at + items[i].name,
                                                   (Py_ssize_t)items[i].length);
        if (!name)
            goto fault;
        PyList_SET_ITEM(names, (Py_ssize_t)to, name);
        memcpy(PyBytes_AS_STRING(keys) + to * KEY_SIZE, items[i].stat, KEY_SIZE);
        memcpy(PyBytes_AS_STRING(extras) + to * EXTRA_SIZE, items[i].stat + KEY_SIZE, EXTRA_SIZE);
        PyBytes_AS_STRING(kinds)[to++] = (char)((items[i].stat[1] >> 4) & 0xF);
    }
    return Py_BuildValue("(NNNNN)", names, kinds, keys, extras, failed);
fault:
    Py_XDECREF(names);
    Py_XDECREF(kinds);
    Py_XDECREF(keys);
    Py_XDECREF(extras);
    Py_XDECREF(failed);
    return NULL;
}

static int list_names(int fd, listing *l)
{
    int failed = 0, copy;
    DIR *directory = NULL;
    Py_BEGIN_ALLOW_THREADS
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy >= 0 && !(directory = fdopendir(copy))) {
        int error = errno;
        close(copy);
        errno = error;
    }
    if (directory) {
        rewinddir(directory);
        failed = read_names(directory, l);
        closedir(directory);
        if (!failed && l->items.used)
            qsort(l->items.at, l->items.used / sizeof(seen), sizeof(seen), by_inode);
    }
    Py_END_ALLOW_THREADS
    if (!directory)
        PyErr_SetFromErrno(PyExc_OSError);
    else if (failed)
        PyErr_NoMemory();
    return directory && !failed ? 0 : -1;
}

PyDoc_STRVAR(scan_dir_doc, "scan_dir(fd) -> (names, kinds, keys, extras, failed)");

static PyObject *scan_dir(PyObject *module, PyObject *args)
{
    int fd;
    PyObject *result = NULL;
    listing l = {{0}, {0}, 0};
    (void)module;
    if (!PyArg_ParseTuple(args, "i:scan_dir", &fd) || list_names(fd, &l) < 0)
        goto done;
    size_t count = l.items.used / sizeof(seen);
    for (size_t from = 0; from < count; from += BATCH) {
        Py_BEGIN_ALLOW_THREADS
        stat_some(fd, &l, from, from + BATCH < count ? from + BATCH : count);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0)
            goto done;
    }
    if (count)
        qsort_r(l.items.at, count, sizeof(seen), by_name, l.names.at);
    result = listing_result(&l, count);
done:
    PyMem_RawFree(l.names.at);
    PyMem_RawFree(l.items.at);
    return result;
}

/* ------------------------------------------------------------- read small files */

#define NOT_REGULAR (-1)
#define TOO_LARGE (-2)
#define NO_MEMORY (-3)
#define NO_ROOM (-4)

typedef struct {
    const char *name;
    int status;
    size_t offset, length;
    uint8_t stat[STAT_SIZE];
    arena xattrs;
} taken;

static int xattr_head(arena *out, const char *name)
{
    size_t length = strlen(name);
    uint8_t *to = arena_take(out, 2 + length);
    if (!to)
        return -1;
    to[0] = (uint8_t)length, to[1] = (uint8_t)(length >> 8);
    memcpy(to + 2, name, length);
    return 0;
}

/* An attribute that cannot be read: its name, length 2^32 - 1, and the error number. */
static int xattr_failed(arena *out, const char *name, int error)
{
    uint8_t *to;
    if (xattr_head(out, name) < 0 || !(to = arena_take(out, 8)))
        return -1;
    put32(put32(to, UINT32_MAX), (uint32_t)error);
    return 0;
}

static int xattr_value(int fd, const char *name, arena *out)
{
    for (;;) {
        ssize_t size = fgetxattr(fd, name, NULL, 0);
        if (size < 0)
            return errno == ENODATA ? 0 : xattr_failed(out, name, errno);
        size_t before = out->used;
        if (xattr_head(out, name) < 0)
            return -1;
        size_t at = out->used;
        uint8_t *to = arena_take(out, 4 + (size_t)size);
        if (!to)
            return -1;
        ssize_t got = fgetxattr(fd, name, to + 4, (size_t)size);
        int error = errno;
        out->used = before;
        if (got >= 0) {
            put32(out->at + at, (uint32_t)got);
            out->used = at + 4 + (size_t)got;
            return 0;
        }
        if (error != ERANGE)
            return error == ENODATA ? 0 : xattr_failed(out, name, error);
    }
}

static int read_xattrs(int fd, arena *out)
{
    char list[65536]; /* XATTR_LIST_MAX */
    ssize_t size = flistxattr(fd, NULL, 0); /* the kernel clears a buffer of the size asked for */
    if (size > 0)
        size = flistxattr(fd, list, sizeof list);
    if (size < 0)
        return errno == ENOTSUP || errno == ENOSYS ? 0 : xattr_failed(out, "", errno);
    for (char *name = list; name < list + size; name += strlen(name) + 1)
        if (xattr_value(fd, name, out) < 0)
            return -1;
    return 0;
}

/* Read to the end of the file; a file that grew past `room` or `limit` says so. */
static int read_whole(int fd, uint8_t *to, size_t room, size_t limit, taken *t, struct stat *st)
{
    size_t cap = room < limit + 1 ? room : limit + 1, total = 0;
    size_t ask = (size_t)st->st_size + 1;
    for (;;) {
        if (total == cap)
            return cap == limit + 1 ? TOO_LARGE : NO_ROOM;
        ssize_t got = read(fd, to + total, ask < cap - total ? ask : cap - total);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno;
        total += (size_t)got;
        t->length = total;
        if (fstat(fd, st) < 0)
            return errno;
        if (!got || (size_t)st->st_size == total)
            return 0;
        ask = cap;
    }
}

static int read_opened(int fd, uint8_t *to, size_t room, size_t limit, taken *t)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return errno;
    if (!S_ISREG(st.st_mode))
        return NOT_REGULAR;
    if ((uint64_t)st.st_size > limit)
        return TOO_LARGE;
    if ((size_t)st.st_size + 1 > room)
        return NO_ROOM;
    int status = read_whole(fd, to, room, limit, t, &st);
    if (status)
        return status;
    if (read_xattrs(fd, &t->xattrs) < 0)
        return NO_MEMORY;
    pack_stat(t->stat, &st);
    return 0;
}

static void read_one(int dirfd, uint8_t *to, size_t room, size_t limit, int *noatime, taken *t)
{
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;
    int fd;
    do {
        fd = openat(dirfd, t->name, flags | *noatime);
        if (fd < 0 && errno == EPERM && *noatime) {
            *noatime = 0; /* not ours: the access time cannot be spared */
            errno = EINTR;
        }
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        t->status = errno;
        return;
    }
    t->status = read_opened(fd, to, room, limit, t);
    close(fd);
}

static PyObject *taken_result(taken *all, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        taken *t = &all[i];
        int good = !t->status;
        PyObject *row = Py_BuildValue(
            "(innNN)", t->status, (Py_ssize_t)t->offset, (Py_ssize_t)(good ? t->length : 0),
            PyBytes_FromStringAndSize((char *)t->stat, good ? STAT_SIZE : 0),
            PyBytes_FromStringAndSize((char *)t->xattrs.at, (Py_ssize_t)(good ? t->xattrs.used : 0)));
        if (row)
            PyList_SET_ITEM(list, (Py_ssize_t)i, row);
        else
            Py_CLEAR(list);
    }
    return list;
}

/* Read all[0 .. count) into `view`; return how many were dealt with, or -1 with an exception. */
static Py_ssize_t read_batches(int dirfd, taken *all, size_t count, Py_buffer *view, size_t limit)
{
    size_t used = 0, done = 0;
    int stop = 0, noatime = O_NOATIME;
    while (done < count && !stop) {
        size_t end = done + BATCH < count ? done + BATCH : count;
        Py_BEGIN_ALLOW_THREADS
        for (; done < end && !stop; done++) {
            taken *t = &all[done];
            t->offset = used;
            read_one(dirfd, (uint8_t *)view->buf + used, (size_t)view->len - used, limit, &noatime, t);
            if (!t->status)
                used += t->length;
            stop = t->status == NO_ROOM || t->status == NO_MEMORY;
        }
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0)
            return -1;
    }
    if (stop && all[done - 1].status == NO_MEMORY) {
        PyErr_NoMemory();
        return -1;
    }
    return (Py_ssize_t)(done - (size_t)stop);
}

PyDoc_STRVAR(read_files_doc,
             "read_files(dirfd, names, buffer, limit) -> [(status, offset, length, stat, xattrs)]");

static PyObject *read_files(PyObject *module, PyObject *args)
{
    int dirfd;
    PyObject *given, *names = NULL, *result = NULL;
    Py_buffer view = {0};
    Py_ssize_t limit, count = 0, done;
    taken *all = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "iOw*n:read_files", &dirfd, &given, &view, &limit))
        return NULL;
    if (limit < 0 || view.len <= limit) {
        PyErr_SetString(PyExc_ValueError, "the buffer must be larger than the limit");
        goto done;
    }
    if (!(names = PySequence_Tuple(given)))
        goto done;
    count = PyTuple_GET_SIZE(names);
    if (!(all = PyMem_RawCalloc((size_t)count + 1, sizeof(taken)))) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (PyBytes_AsStringAndSize(PyTuple_GET_ITEM(names, i), (char **)&all[i].name, NULL) < 0)
            goto done;
    done = read_batches(dirfd, all, (size_t)count, &view, (size_t)limit);
    if (done >= 0)
        result = taken_result(all, (size_t)done);
done:
    for (Py_ssize_t i = 0; all && i < count; i++)
        PyMem_RawFree(all[i].xattrs.at);
    PyMem_RawFree(all);
    Py_XDECREF(names);
    PyBuffer_Release(&view);
    return result;
}

/* --------------------------------------------- columns of new, small, plain files */

static uint32_t get32(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint64_t get64(const uint8_t *at)
{
    return get32(at) | (uint64_t)get32(at + 4) << 32;
}

/* Where the fields of a KEY begin. */
enum { KEY_LINKS = 4, KEY_UID = 8, KEY_GID = 12, KEY_LENGTH = 32, KEY_MTIME = 40, KEY_CTIME = 48 };

static int64_t newest_of(const uint8_t *key)
{
    int64_t mtime = (int64_t)get64(key + KEY_MTIME), ctime = (int64_t)get64(key + KEY_CTIME);
    return mtime > ctime ? mtime : ctime;
}

PyDoc_STRVAR(plain_run_doc, "plain_run(keys, start, stop, limit, room) -> (end, size, newest)");

static PyObject *plain_run(PyObject *module, PyObject *args)
{
    Py_buffer keys;
    Py_ssize_t start, stop;
    unsigned long long limit, room, total = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*nnKK:plain_run", &keys, &start, &stop, &limit, &room))
        return NULL;
    int64_t newest = INT64_MIN;
    if (start < 0 || stop > keys.len / KEY_SIZE) {
        PyBuffer_Release(&keys);
        PyErr_SetString(PyExc_ValueError, "there are not so many keys");
        return NULL;
    }
    for (; start < stop; start++) {
        const uint8_t *key = (const uint8_t *)keys.buf + start * KEY_SIZE;
        uint64_t size = get64(key + KEY_LENGTH);
        if (!S_ISREG(get32(key)) || get32(key + KEY_LINKS) != 1 || size > limit ||
            size > room - total)
            break;
        total += size;
        newest = newest_of(key) > newest ? newest_of(key) : newest;
    }
    PyBuffer_Release(&keys);
    return Py_BuildValue("(nKL)", start, total, (long long)newest);
}

/* Are the attributes of the file these, packed? Most have none, and say so cheaply. */
static int same_xattrs(int fd, const Py_buffer *wanted)
{
    arena found = {0};
    ssize_t size = flistxattr(fd, NULL, 0);
    if (!size || (size < 0 && (errno == ENOTSUP || errno == ENOSYS)))
        return !wanted->len;
    if (!wanted->len)
        return 0;
    int same = !read_xattrs(fd, &found) && found.used == (size_t)wanted->len &&
               !memcmp(found.at, wanted->buf, found.used);
    PyMem_RawFree(found.at);
    return same;
}

/* Read a file that is all the time what `key` says it is, without being asked twice. */
static int read_as_scanned(int fd, const uint8_t *key, uint8_t *to, const Py_buffer *xattrs)
{
    struct stat st;
    uint8_t after[STAT_SIZE];
    uint64_t size = get64(key + KEY_LENGTH);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return 0;
    if (read(fd, to, size + 1) != (ssize_t)size)
        return 0;
    if (!same_xattrs(fd, xattrs) || fstat(fd, &st) < 0)
        return 0;
    pack_stat(after, &st);
    return !memcmp(after, key, KEY_SIZE);
}

static int read_plain_one(int dirfd, const char *name, const uint8_t *key, uint8_t *to,
                          const Py_buffer *xattrs)
{
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY | O_NOATIME;
    int fd = openat(dirfd, name, flags);
    if (fd < 0 && errno == EPERM)
        fd = openat(dirfd, name, flags & ~O_NOATIME);
    if (fd < 0)
        return 0;
    int good = read_as_scanned(fd, key, to, xattrs);
    close(fd);
    return good;
}

typedef struct {
    int dirfd;
    Py_buffer keys, room, xattrs;
    size_t used;
} plain;

/* Read names[at .. end); return where the first that is not as it was stands, -1 with an exception. */
static Py_ssize_t read_plain_batch(plain *p, PyObject *names, Py_ssize_t at, Py_ssize_t end)
{
    const char *text[BATCH];
    PyObject *held = PyList_GetSlice(names, at, end); /* the list may change while the GIL is away */
    if (!held)
        return -1;
    Py_ssize_t count = PyList_GET_SIZE(held), done = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (PyBytes_AsStringAndSize(PyList_GET_ITEM(held, i), (char **)&text[i], NULL) < 0) {
            Py_DECREF(held);
            return -1;
        }
    Py_BEGIN_ALLOW_THREADS
    for (; done < count; done++) {
        const uint8_t *key = (const uint8_t *)p->keys.buf + (at + done) * KEY_SIZE;
        uint64_t size = get64(key + KEY_LENGTH);
        if (size >= (uint64_t)p->room.len - p->used ||
            !read_plain_one(p->dirfd, text[done], key, (uint8_t *)p->room.buf + p->used, &p->xattrs))
            break;
        p->used += size;
    }
    Py_END_ALLOW_THREADS
    Py_DECREF(held);
    return PyErr_CheckSignals() < 0 ? -1 : at + done;
}

PyDoc_STRVAR(read_plain_doc,
             "read_plain(dirfd, names, keys, start, buffer, xattrs) -> (end, bytes read)");

static PyObject *read_plain(PyObject *module, PyObject *args)
{
    PyObject *names, *result = NULL;
    Py_ssize_t at, stop;
    plain p = {0};
    (void)module;
    if (!PyArg_ParseTuple(args, "iO!y*nw*y*:read_plain", &p.dirfd, &PyList_Type, &names, &p.keys,
                          &at, &p.room, &p.xattrs))
        return NULL;
    stop = PyList_GET_SIZE(names);
    if (at < 0 || p.keys.len != stop * KEY_SIZE) {
        PyErr_SetString(PyExc_ValueError, "there is one key for each name");
        goto done;
    }
    while (at < stop) {
        Py_ssize_t end = at + BATCH < stop ? at + BATCH : stop;
        Py_ssize_t reached = read_plain_batch(&p, names, at, end);
        if (reached < 0)
            goto done;
        at = reached;
        if (reached < end)
            break;
    }
    result = Py_BuildValue("(nn)", at, (Py_ssize_t)p.used);
done:
    PyBuffer_Release(&p.keys);
    PyBuffer_Release(&p.room);
    PyBuffer_Release(&p.xattrs);
    return result;
}

#define RECORD_HEAD 32

static PyObject *plain_record(const uint8_t *key, const Py_buffer *lead, PyObject *id,
                              const Py_buffer *tail)
{
    if (!PyBytes_Check(id)) {
        PyErr_SetString(PyExc_TypeError, "an id is bytes");
        return NULL;
    }
    Py_ssize_t content = PyBytes_GET_SIZE(id) ? lead->len + PyBytes_GET_SIZE(id) : 0;
    PyObject *record = PyBytes_FromStringAndSize(NULL, RECORD_HEAD + content + tail->len);
    if (!record)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AS_STRING(record);
    uint32_t mode = get32(key) & 07777;
    to[0] = 1, to[1] = tail->len ? 4 : 0;
    to[2] = (uint8_t)mode, to[3] = (uint8_t)(mode >> 8);
    memcpy(to + 4, key + KEY_UID, 8); /* and gid */
    memcpy(to + 12, key + KEY_MTIME, 8);
    memcpy(to + 20, key + KEY_LENGTH, 8);
    to = put32(to + 28, (uint32_t)content);
    if (content) {
        memcpy(to, lead->buf, (size_t)lead->len);
        memcpy(to + lead->len, PyBytes_AS_STRING(id), (size_t)PyBytes_GET_SIZE(id));
    }
    memcpy(to + content, tail->buf, (size_t)tail->len);
    return record;
}

PyDoc_STRVAR(plain_records_doc, "plain_records(keys, lead, ids, tail) -> [record]");

static PyObject *plain_records(PyObject *module, PyObject *args)
{
    Py_buffer keys, lead, tail;
    PyObject *ids, *records = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*O!y*:plain_records", &keys, &lead, &PyList_Type, &ids, &tail))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(ids);
    if (keys.len != count * KEY_SIZE)
        PyErr_SetString(PyExc_ValueError, "there is one key for each id");
    else
        records = PyList_New(count);
    for (Py_ssize_t i = 0; records && i < count; i++) {
        PyObject *record = plain_record((const uint8_t *)keys.buf + i * KEY_SIZE, &lead,
                                        PyList_GET_ITEM(ids, i), &tail);
        if (record)
            PyList_SET_ITEM(records, i, record);
        else
            Py_CLEAR(records);
    }
    PyBuffer_Release(&keys);
    PyBuffer_Release(&lead);
    PyBuffer_Release(&tail);
    return records;
}

/* Length of the folder that both paths stand in. */
static size_t shared_folder(PyObject *previous, PyObject *path)
{
    const char *text = PyBytes_AS_STRING(path);
    const char *slash = memrchr(text, '/', (size_t)PyBytes_GET_SIZE(path));
    size_t folder = slash ? (size_t)(slash - text) + 1 : 0;
    if (!previous || (size_t)PyBytes_GET_SIZE(previous) < folder ||
        memcmp(PyBytes_AS_STRING(previous), text, folder))
        return 0;
    return folder;
}

static int page_size(PyObject *paths, PyObject *records, size_t *total)
{
    PyObject *previous = NULL;
    *total = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(paths); i++) {
        PyObject *path = PyList_GET_ITEM(paths, i), *record = PyList_GET_ITEM(records, i);
        if (!PyBytes_Check(path) || !PyBytes_Check(record)) {
            PyErr_SetString(PyExc_TypeError, "paths and records are bytes");
            return -1;
        }
        if (PyBytes_GET_SIZE(path) > 0xFFFF || (uint64_t)PyBytes_GET_SIZE(record) > UINT32_MAX) {
            PyErr_SetString(PyExc_ValueError, "a path or record is too long");
            return -1;
        }
        *total += 8 + (size_t)PyBytes_GET_SIZE(path) - shared_folder(previous, path) +
                  (size_t)PyBytes_GET_SIZE(record);
        previous = path;
    }
    return 0;
}

PyDoc_STRVAR(encode_page_doc, "encode_page(paths, records) -> bytes");

static PyObject *encode_page(PyObject *module, PyObject *args)
{
    PyObject *paths, *records, *page, *previous = NULL;
    size_t total;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!O!:encode_page", &PyList_Type, &paths, &PyList_Type, &records))
        return NULL;
    if (PyList_GET_SIZE(paths) != PyList_GET_SIZE(records)) {
        PyErr_SetString(PyExc_ValueError, "there is one record for each path");
        return NULL;
    }
    if (page_size(paths, records, &total) < 0 ||
        !(page = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total)))
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AS_STRING(page);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(paths); i++) {
        PyObject *path = PyList_GET_ITEM(paths, i), *record = PyList_GET_ITEM(records, i);
        size_t shared = shared_folder(previous, path);
        size_t rest = (size_t)PyBytes_GET_SIZE(path) - shared;
        size_t length = (size_t)PyBytes_GET_SIZE(record);
        to = put32(put32(to, (uint32_t)(shared | rest << 16)), (uint32_t)length);
        memcpy(to, PyBytes_AS_STRING(path) + shared, rest);
        memcpy(to + rest, PyBytes_AS_STRING(record), length);
        to += rest + length;
        previous = path;
    }
    return page;
}

/* ------------------------------------------------------------ write small files */

enum step { DONE, OPEN, WRITE, OWNER, MODE, TIMES };

typedef struct {
    int dirfd;
    const char *name;
    Py_buffer data;
    unsigned int mode;
    long long uid, gid, mtime;
    int step, error;
} spec;

static int write_all(int fd, const uint8_t *data, size_t size)
{
    while (size) {
        ssize_t put = write(fd, data, size);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put ? errno : EIO;
        data += put;
        size -= (size_t)put;
    }
    return 0;
}

static void note(spec *s, int step)
{
    if (s->step == DONE) {
        s->step = step;
        s->error = errno;
    }
}

/* Set what differs from what the file was born with, be it by a umask, a default ACL or set-gid. */
static int set_facts(int fd, spec *s)
{
    unsigned int mode = s->mode;
    struct stat st;
    if (fstat(fd, &st) < 0)
        return errno;
    if (s->uid >= 0 && (st.st_uid != (uid_t)s->uid || st.st_gid != (gid_t)s->gid) &&
        fchown(fd, (uid_t)s->uid, (gid_t)s->gid) < 0) {
        note(s, OWNER);
        mode &= ~06000u; /* set-id for somebody else's sake only */
    }
    if ((st.st_mode & 07777) != mode && fchmod(fd, (mode_t)mode) < 0)
        note(s, MODE);
    int64_t seconds = s->mtime / 1000000000, rest = s->mtime % 1000000000;
    if (rest < 0)
        seconds--, rest += 1000000000;
    struct timespec times[2] = {{seconds, rest}, {seconds, rest}};
    if (futimens(fd, times) < 0)
        note(s, TIMES);
    return 0;
}

static void write_one(spec *s)
{
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY;
    const mode_t born = s->uid < 0 ? s->mode & 0777 : 0600; /* nobody else's before it is theirs */
    int fd;
    do
        fd = openat(s->dirfd, s->name, flags, born);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        note(s, OPEN);
        return;
    }
    int error = write_all(fd, s->data.buf, (size_t)s->data.len);
    if (!error)
        error = set_facts(fd, s);
    if (close(fd) < 0 && !error && errno != EINTR)
        error = errno;
    if (error) {
        unlinkat(s->dirfd, s->name, 0); /* ours: O_EXCL made it a moment ago */
        s->step = WRITE;
        s->error = error;
    }
}

static int parse_spec(PyObject *row, PyObject *content, spec *s)
{
    if (!PyTuple_Check(row)) {
        PyErr_SetString(PyExc_TypeError, "a spec is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(row, "iyILLL:write_files", &s->dirfd, &s->name, &s->mode, &s->uid,
                          &s->gid, &s->mtime))
        return -1;
    return PyObject_GetBuffer(content, &s->data, PyBUF_SIMPLE);
}

static int write_batches(spec *all, size_t count)
{
    for (size_t done = 0; done < count;) {
        size_t end = done + BATCH < count ? done + BATCH : count;
        Py_BEGIN_ALLOW_THREADS
        for (; done < end; done++)
            write_one(&all[done]);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0)
            return -1;
    }
    return 0;
}

static PyObject *write_results(const spec *all, Py_ssize_t count)
{
    PyObject *good = Py_BuildValue("(ii)", DONE, 0), *result = good ? PyList_New(count) : NULL;
    for (Py_ssize_t i = 0; result && i < count; i++) {
        PyObject *pair = all[i].step == DONE ? Py_NewRef(good)
                                             : Py_BuildValue("(ii)", all[i].step, all[i].error);
        if (pair)
            PyList_SET_ITEM(result, i, pair);
        else
            Py_CLEAR(result);
    }
    Py_XDECREF(good);
    return result;
}

PyDoc_STRVAR(write_files_doc,
             "write_files([(dirfd, name, mode, uid, gid, mtime_ns)], contents) -> [(step, errno)]");

static PyObject *write_files(PyObject *module, PyObject *args)
{
    PyObject *given, *contents, *rows = NULL, *data = NULL, *result = NULL;
    Py_ssize_t count = 0, parsed = 0;
    spec *all = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO:write_files", &given, &contents) ||
        !(rows = PySequence_Tuple(given)) || !(data = PySequence_Tuple(contents)))
        goto done;
    count = PyTuple_GET_SIZE(rows);
    if (PyTuple_GET_SIZE(data) != count) {
        PyErr_SetString(PyExc_ValueError, "every file has one content");
        goto done;
    }
    if (!(all = PyMem_RawCalloc((size_t)count + 1, sizeof(spec)))) {
        PyErr_NoMemory();
        goto done;
    }
    for (; parsed < count; parsed++)
        if (parse_spec(PyTuple_GET_ITEM(rows, parsed), PyTuple_GET_ITEM(data, parsed),
                       &all[parsed]) < 0)
            goto done;
    if (write_batches(all, (size_t)count) == 0)
        result = write_results(all, count);
done:
    for (Py_ssize_t i = 0; i < parsed; i++)
        PyBuffer_Release(&all[i].data);
    PyMem_RawFree(all);
    Py_XDECREF(rows);
    Py_XDECREF(data);
    return result;
}

/* ----------------------------------------------------------- checksums of pages */

/* PostgreSQL's: 32 FNV-1a hashes side by side, see checksum_impl.h. */
#define SUMS 32
#define FNV_PRIME 16777619u
static const uint32_t SUM_BASES[SUMS] = {
    0x5B1F36E9u, 0xB8525960u, 0x02AB50AAu, 0x1DE66D2Au, 0x79FF467Au, 0x9BB9F8A3u, 0x217E7CD2u, 0x83E13D2Cu,
    0xF8D4474Fu, 0xE39EB970u, 0x42C6AE16u, 0x993216FAu, 0x7B093B5Du, 0x98DAFF3Cu, 0xF718902Au, 0x0B1C9CDBu,
    0xE58F764Bu, 0x187636BCu, 0x5D7B3BB1u, 0xE73DE7DEu, 0x92BEC979u, 0xCCA6C0B2u, 0x304A0979u, 0x85AA43D4u,
    0x783125BBu, 0x6CA8EAA2u, 0xE407EAC6u, 0x4B5CFC3Eu, 0x9FBF8C76u, 0x15CA20BEu, 0xF2CA9FD3u, 0x959BD756u,
};

/* Multiplying 32-bit lanes needs more than the oldest x86-64 has; pick at run time where we can. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "sse4.1", "default")))
#else
#define WIDE
#endif

/* The hash of a page whose checksum counts as zero; `head` is its first SUMS words so. */
WIDE static uint32_t sum_page(const uint8_t *page, size_t words, const uint32_t *head)
{
    uint32_t sums[SUMS], tmp, result = 0;
    memcpy(sums, SUM_BASES, sizeof sums);
    for (int j = 0; j < SUMS; j++) {
        tmp = sums[j] ^ head[j];
        sums[j] = tmp * FNV_PRIME ^ (tmp >> 17);
    }
    for (size_t i = SUMS; i < words; i += SUMS) {
        uint32_t row[SUMS];
        memcpy(row, page + i * 4, sizeof row);
        for (int j = 0; j < SUMS; j++) {
            tmp = sums[j] ^ row[j];
            sums[j] = tmp * FNV_PRIME ^ (tmp >> 17);
        }
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < SUMS; j++)
            sums[j] = sums[j] * FNV_PRIME ^ (sums[j] >> 17);
    for (int j = 0; j < SUMS; j++)
        result ^= sums[j];
    return result;
}

static int all_zero(const uint8_t *data, size_t size)
{
    return !data[0] && !memcmp(data, data + 1, size - 1);
}

typedef struct {
    size_t number;
    uint16_t found, expected;
} odd_page;

/* Look at `count` pages; returns how many are odd, at most `room` of which are noted. */
static size_t look_at_pages(const uint8_t *data, size_t count, size_t size, uint32_t first,
                            odd_page *odd, size_t room)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *page = data + i * size;
        uint32_t head[SUMS], sum;
        uint16_t noted;
        memcpy(head, page, sizeof head);
        memcpy(&noted, page + 8, 2);
        head[2] &= 0xFFFF0000u;
        sum = sum_page(page, size / 4, head) ^ (first + (uint32_t)i);
        sum = sum % 65535 + 1;
        if (__builtin_expect(sum != noted, 0) && !all_zero(page, size)) {
            if (found < room)
                odd[found] = (odd_page){i, noted, (uint16_t)sum};
            found++;
        }
    }
    return found;
}

PyDoc_STRVAR(page_checksums_doc, "page_checksums(pages, size, first) -> [(number, found, expected)]");

static PyObject *page_checksums(PyObject *module, PyObject *args)
{
    Py_buffer data;
    Py_ssize_t size;
    unsigned long long first;
    odd_page *odd = NULL;
    size_t count, found = 0;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*nK:page_checksums", &data, &size, &first))
        return NULL;
    if (size <= 0 || size % (SUMS * 4) || data.len % size || first > 0xFFFFFFFFu) {
        PyErr_SetString(PyExc_ValueError, "whole pages of a multiple of 128 bytes, numbered in 32 bits");
        goto done;
    }
    count = (size_t)(data.len / size);
    if (!(odd = PyMem_RawMalloc((count ? count : 1) * sizeof *odd))) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    found = look_at_pages(data.buf, count, (size_t)size, (uint32_t)first, odd, count);
    Py_END_ALLOW_THREADS
    if (!(result = PyList_New((Py_ssize_t)found)))
        goto done;
    for (size_t i = 0; i < found; i++) {
        PyObject *row = Py_BuildValue("nii", (Py_ssize_t)odd[i].number, (int)odd[i].found,
                                      (int)odd[i].expected);
        if (!row) {
            Py_CLEAR(result);
            goto done;
        }
        PyList_SET_ITEM(result, (Py_ssize_t)i, row);
    }
done:
    PyMem_RawFree(odd);
    PyBuffer_Release(&data);
    return result;
}

/* ------------------------------------------------------------------- copies of libpq */

typedef int (*get_copy_t)(void *, char **, int);
typedef int (*consume_t)(void *);
typedef void (*free_t)(void *);

enum { COPY_MORE, COPY_NOTHING, COPY_ENDED, COPY_FAILED };

PyDoc_STRVAR(copy_data_doc, "copy_data(libpq, fd, into, typed, wait) -> (used, rest, other, state)");

static PyObject *copy_data(PyObject *module, PyObject *args)
{
    unsigned long long get_at, consume_at, free_at, connection;
    Py_buffer into;
    int fd, typed, wait, state = COPY_MORE, size = 0;
    size_t used = 0, head;
    char *got = NULL, *at = NULL; /* the message that did not fit, or is not data */
    PyObject *rest = NULL, *other = NULL, *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "(KKKK)iw*pi:copy_data", &get_at, &consume_at, &free_at, &connection,
                          &fd, &into, &typed, &wait))
        return NULL;
    get_copy_t get = (get_copy_t)(uintptr_t)get_at;
    consume_t consume = (consume_t)(uintptr_t)consume_at;
    free_t release = (free_t)(uintptr_t)free_at;
    void *conn = (void *)(uintptr_t)connection;
    head = typed ? 1 : 0;
    Py_BEGIN_ALLOW_THREADS
    for (int looked = 0; used < (size_t)into.len;) {
        size = get(conn, &got, 1);
        if (size > 0) {
            looked = 0;
            at = got + head;
            if (typed && *got != 'd')
                break;
            size_t length = (size_t)size - head, room = (size_t)into.len - used;
            size_t some = length < room ? length : room;
            memcpy((char *)into.buf + used, at, some);
            used += some;
            at += some;
            if (some < length)
                break;
            release(got);
            got = NULL;
            continue;
        }
        if (size < 0) {
            state = size == -1 ? COPY_ENDED : COPY_FAILED;
            break;
        }
        /* What was sealed for the way may wait within libpq: it is asked before the socket is. */
        if (looked) {
            struct pollfd one = {fd, POLLIN, 0};
            if (poll(&one, 1, wait) <= 0) {
                state = COPY_NOTHING;
                break;
            }
        }
        looked = 1;
        if (!consume(conn)) {
            state = COPY_FAILED;
            break;
        }
    }
    Py_END_ALLOW_THREADS
    if (got && typed && *got != 'd')
        other = PyBytes_FromStringAndSize(got, size);
    else
        other = Py_NewRef(Py_None);
    rest = got && other == Py_None ? PyBytes_FromStringAndSize(at, got + size - at)
                                   : PyBytes_FromStringAndSize(NULL, 0);
    if (got)
        release(got);
    if (rest && other)
        result = Py_BuildValue("nOOi", (Py_ssize_t)used, rest, other, state);
    Py_XDECREF(rest);
    Py_XDECREF(other);
    PyBuffer_Release(&into);
    return result;
}

/* ---------------------------------------------------------------------- allocator */

PyDoc_STRVAR(tune_allocator_doc, "tune_allocator() -> bool");

static PyObject *tune_allocator(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
#ifdef __GLIBC__
    /* Older glibc takes no more than half a heap, 32 MiB. */
    int kept = mallopt(M_MMAP_THRESHOLD, 256 << 20) || mallopt(M_MMAP_THRESHOLD, 32 << 20);
    /* Threads hand buffers on to each other; each arena keeps what was ever freed into it. */
    kept = mallopt(M_ARENA_MAX, 2) && kept;
    return PyBool_FromLong(mallopt(M_TRIM_THRESHOLD, 1 << 30) && kept);
#else
    Py_RETURN_FALSE;
#endif
}

/* ------------------------------------------------------------------------ module */

static PyMethodDef METHODS[] = {
    {"candidates", candidates, METH_VARARGS, candidates_doc},
    {"join_blocks", join_blocks, METH_VARARGS, join_blocks_doc},
    {"scan_wal", scan_wal, METH_VARARGS, scan_wal_doc},
    {"_crc32c", py_crc32c, METH_VARARGS, crc32c_doc},
    {"scan_dir", scan_dir, METH_VARARGS, scan_dir_doc},
    {"read_files", read_files, METH_VARARGS, read_files_doc},
    {"plain_run", plain_run, METH_VARARGS, plain_run_doc},
    {"read_plain", read_plain, METH_VARARGS, read_plain_doc},
    {"plain_records", plain_records, METH_VARARGS, plain_records_doc},
    {"encode_page", encode_page, METH_VARARGS, encode_page_doc},
    {"write_files", write_files, METH_VARARGS, write_files_doc},
    {"page_checksums", page_checksums, METH_VARARGS, page_checksums_doc},
    {"copy_data", copy_data, METH_VARARGS, copy_data_doc},
    {"tune_allocator", tune_allocator, METH_NOARGS, tune_allocator_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_kernel", "Compiled twins of strongroom.kernel.", 0, METHODS,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    choose_crc();
    return PyModule_Create(&MODULE);
}
