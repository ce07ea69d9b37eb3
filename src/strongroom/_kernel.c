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

#include <stdint.h>
#include <string.h>

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

/* ------------------------------------------------------------------------ module */

static PyMethodDef METHODS[] = {
    {"candidates", candidates, METH_VARARGS, candidates_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_kernel", "Compiled twins of strongroom.kernel.", 0, METHODS,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModule_Create(&MODULE);
}
