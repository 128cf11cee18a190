/* The framing in C: the functions of _framing_py.py and _transfer_py.py, which specify them and say what each does.
   _framing.py documents the messages, _page.py the page.

   - Signal handlers written in Python run only where PyErr_CheckSignals() is called: after EINTR, when all that
     was received is recorded and all that was sent is removed.
   - A received descriptor either stands in a list that the caller can see, or it is closed.
   - The GIL is released once for a batch, not once for a message: each time, a thread that computes in Python
     may keep it for a switch interval (5 ms), as long as ten thousand messages take. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define MESSAGE_LIMIT 32768
#define READY_LIMIT 256
#define STREAMED (1 << 22) /* bytes that are copied past the caches */
#define LINE 64            /* bytes of the caches' lines */

/* --- Arguments and time --------------------------------------------------------------------------------- */

static int check_arity(const char *function, Py_ssize_t given, Py_ssize_t expected) {
    if (given == expected)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments but %zd were given", function, expected, given);
    return -1;
}

static int integer_within(PyObject *object, const char *name, uint64_t least, uint64_t most, uint64_t *value) {
    PyObject *number = PyNumber_Index(object);
    if (number == NULL)
        return -1;
    *value = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (!PyErr_Occurred() && least <= *value && *value <= most)
        return 0;
    PyErr_Clear(); /* OverflowError: below zero, or more than 64 bits */
    PyErr_Format(PyExc_ValueError, "%s must be between %llu and %llu", name, (unsigned long long)least,
                 (unsigned long long)most);
    return -1;
}

static int check_list(PyObject *object, const char *name) {
    if (PyList_Check(object))
        return 0;
    PyErr_Format(PyExc_TypeError, "%s must be a list", name);
    return -1;
}

/* As PyObject_CallMethod(), which makes a new string each time and thereby spoils the cache of methods. */
static PyObject *call_method(PyObject *object, const char *name, PyObject *argument_or_null) {
    PyObject *interned = PyUnicode_InternFromString(name);
    PyObject *result =
        interned == NULL ? NULL : PyObject_CallMethodObjArgs(object, interned, argument_or_null, NULL);
    Py_XDECREF(interned);
    return result;
}

static int descriptor_of(PyObject *file) {
    /* Not PyObject_AsFileDescriptor(): a closed socket answers -1, and refusing that is the kernel's part. */
    PyObject *number = call_method(file, "fileno", NULL);
    int descriptor = number == NULL ? -1 : (int)PyLong_AsLong(number);
    Py_XDECREF(number);
    return descriptor;
}

static int64_t now(void) { /* in nanoseconds */
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int64_t deadline_after(double seconds) {
    const double ages = 1e9; /* for ever, and no overflow */
    return now() + (seconds > 0 ? (int64_t)((seconds < ages ? seconds : ages) * 1e9) : 0);
}

/* --- Messages ------------------------------------------------------------------------------------------- */

struct __attribute__((packed)) header {
    char magic[4];
    uint8_t version;
    uint8_t kind;
    uint16_t flags;
    uint64_t ident;
    uint32_t number; /* of buffers */
};

static const char magic[4] = {'p', 'a', 'i', 'r'};
enum { VERSION = 1 };

static PyObject *pack(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    PyObject *buffers = NULL, *message = NULL;
    Py_buffer *views = NULL;
    Py_ssize_t held = 0, number;
    uint64_t kind, ident;

    if (check_arity("pack", nargs, 3) < 0 || integer_within(args[0], "kind", 0, UINT8_MAX, &kind) < 0 ||
        integer_within(args[1], "ident", 0, UINT64_MAX, &ident) < 0)
        goto exit;
    buffers = PySequence_Tuple(args[2]);
    if (buffers == NULL)
        goto exit;
    number = PyTuple_Size(buffers);
    views = PyMem_Calloc((size_t)number, sizeof(Py_buffer));
    if (views == NULL || (uint64_t)number > UINT32_MAX) {
        PyErr_NoMemory();
        goto exit;
    }
    Py_ssize_t total = (Py_ssize_t)sizeof(struct header) + number * (Py_ssize_t)sizeof(uint64_t);
    while (held < number) {
        Py_buffer *view = &views[held];
        if (PyObject_GetBuffer(PyTuple_GetItem(buffers, held), view, PyBUF_FULL_RO) < 0)
            goto exit;
        held++;
        if (!PyBuffer_IsContiguous(view, 'C') || view->len > PY_SSIZE_T_MAX - total) {
            PyErr_SetString(PyExc_BufferError, "a buffer of a message must be C-contiguous");
            goto exit;
        }
        total += view->len;
    }
    message = PyBytes_FromStringAndSize(NULL, total);
    if (message == NULL)
        goto exit;
    struct header header = {.version = VERSION,
                            .kind = (uint8_t)kind,
                            .ident = htole64(ident),
                            .number = htole32((uint32_t)number)};
    memcpy(header.magic, magic, sizeof(magic));
    char *to = PyBytes_AsString(message);
    memcpy(to, &header, sizeof(header));
    to += sizeof(header);
    for (Py_ssize_t i = 0; i < number; i++, to += sizeof(uint64_t)) {
        uint64_t length = htole64((uint64_t)views[i].len);
        memcpy(to, &length, sizeof(length));
    }
    for (Py_ssize_t i = 0; i < number; to += views[i].len, i++)
        memcpy(to, views[i].buf, (size_t)views[i].len);

exit:
    while (held > 0)
        PyBuffer_Release(&views[--held]);
    PyMem_Free(views);
    Py_XDECREF(buffers);
    return message;
}

static uint64_t length_at(const char *data, Py_ssize_t i) {
    uint64_t length;
    memcpy(&length, data + sizeof(struct header) + (size_t)i * sizeof(length), sizeof(length));
    return le64toh(length);
}

/* Copy the header; return what is wrong with the message, or NULL. */
static const char *parse(const char *data, Py_ssize_t size, struct header *header) {
    if (size < (Py_ssize_t)sizeof(*header))
        return "shorter than a header";
    memcpy(header, data, sizeof(*header));
    header->ident = le64toh(header->ident);
    header->number = le32toh(header->number);
    if (memcmp(header->magic, magic, sizeof(magic)) != 0)
        return "wrong magic";
    if (header->version != VERSION)
        return "unknown version";
    if (header->flags != 0)
        return "unknown flags";
    uint64_t left = (uint64_t)size - sizeof(*header);
    if (header->number > left / sizeof(uint64_t))
        return "lengths cut off";
    left -= header->number * sizeof(uint64_t);
    for (uint32_t i = 0; i < header->number; i++) {
        uint64_t length = length_at(data, i);
        if (length > left)
            return "lengths do not add up";
        left -= length;
    }
    return left == 0 ? NULL : "lengths do not add up";
}

static void raise_malformed(Py_ssize_t size, const char *reason) {
    PyObject *errors = PyImport_ImportModule("pairpool.errors");
    PyObject *type = errors == NULL ? NULL : PyObject_GetAttrString(errors, "FramingError");
    if (type != NULL)
        PyErr_Format(type, "malformed message of %zd bytes: %s", size, reason);
    Py_XDECREF(type);
    Py_XDECREF(errors);
}

static PyObject *bytes_view(PyObject *message) {
    PyObject *view = PyMemoryView_FromObject(message);
    if (view == NULL || PyBytes_CheckExact(message))
        return view;
    PyObject *format = PyUnicode_InternFromString("B");
    PyObject *cast = format == NULL ? NULL : call_method(view, "cast", format);
    Py_XDECREF(format);
    Py_DECREF(view);
    return cast;
}

static PyObject *unpack(PyObject *Py_UNUSED(module), PyObject *message) {
    PyObject *buffers = NULL, *unpacked = NULL;
    Py_buffer bytes = {.obj = NULL};
    struct header header;

    PyObject *view = bytes_view(message);
    if (view == NULL || PyObject_GetBuffer(view, &bytes, PyBUF_SIMPLE) < 0)
        goto exit;
    const char *wrong = parse(bytes.buf, bytes.len, &header);
    if (wrong != NULL) {
        raise_malformed(bytes.len, wrong);
        goto exit;
    }
    buffers = PyList_New(header.number);
    Py_ssize_t start = (Py_ssize_t)(sizeof(header) + header.number * sizeof(uint64_t));
    for (Py_ssize_t i = 0; buffers != NULL && i < (Py_ssize_t)header.number; i++) {
        Py_ssize_t end = start + (Py_ssize_t)length_at(bytes.buf, i);
        PyObject *buffer = PySequence_GetSlice(view, start, end);
        if (buffer == NULL || PyList_SetItem(buffers, i, buffer) < 0)
            goto exit;
        start = end;
    }
    if (buffers != NULL)
        unpacked = Py_BuildValue("BKO", header.kind, (unsigned long long)header.ident, buffers);

exit:
    PyBuffer_Release(&bytes);
    Py_XDECREF(buffers);
    Py_XDECREF(view);
    return unpacked;
}

/* --- Sending -------------------------------------------------------------------------------------------- */

#define DESCRIPTOR_LIMIT 253 /* SCM_MAX_FD: as many as the kernel lets one message carry */
#define PARCELS 16           /* sent in one go */

struct parcel {
    PyObject *entry;
    Py_buffer message;
    int socket;
    size_t control_size;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(DESCRIPTOR_LIMIT * sizeof(int))];
};

static void unload(struct parcel *parcel) {
    PyBuffer_Release(&parcel->message);
    Py_CLEAR(parcel->entry);
}

static int load_descriptors(struct parcel *parcel, PyObject *sequence) {
    PyObject *descriptors = PySequence_Tuple(sequence);
    Py_ssize_t number = descriptors == NULL ? 0 : PyTuple_Size(descriptors);
    struct cmsghdr *head = (struct cmsghdr *)parcel->control;

    if (number > DESCRIPTOR_LIMIT) {
        errno = EINVAL; /* the kernel's answer to too many */
        PyErr_SetFromErrno(PyExc_OSError);
        goto exit;
    }
    size_t size = (size_t)number * sizeof(int);
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(size), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    parcel->control_size = number > 0 ? CMSG_SPACE(size) : 0;
    for (Py_ssize_t i = 0; i < number; i++) {
        int descriptor = (int)PyLong_AsLong(PyTuple_GetItem(descriptors, i));
        memcpy(CMSG_DATA(head) + (size_t)i * sizeof(int), &descriptor, sizeof(int));
    }

exit:
    Py_XDECREF(descriptors);
    return PyErr_Occurred() ? -1 : 0;
}

/* Take the entry at `position` for sending; it stays where it is. */
static int load(struct parcel *parcel, PyObject *outgoing, Py_ssize_t position) {
    PyObject *sock, *message, *descriptors;

    parcel->message.obj = NULL;
    parcel->entry = PySequence_GetItem(outgoing, position);
    if (parcel->entry == NULL || !PyArg_UnpackTuple(parcel->entry, "entry", 3, 3, &sock, &message, &descriptors))
        goto exit;
    parcel->socket = descriptor_of(sock);
    if (PyErr_Occurred() || PyObject_GetBuffer(message, &parcel->message, PyBUF_SIMPLE) < 0)
        goto exit;
    if (load_descriptors(parcel, descriptors) == 0)
        return 0;

exit:
    unload(parcel);
    return -1;
}

static int send_parcel(struct parcel *parcel) {
    struct iovec place = {parcel->message.buf, (size_t)parcel->message.len};
    struct msghdr header = {.msg_iov = &place,
                            .msg_iovlen = 1,
                            .msg_control = parcel->control_size > 0 ? parcel->control : NULL,
                            .msg_controllen = parcel->control_size};
    return sendmsg(parcel->socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -1 : 0;
}

/* Send entries and remove those that were sent; return how many, and what errno said of the next. */
static Py_ssize_t flush_batch(PyObject *outgoing, int *error) {
    struct parcel parcels[PARCELS];
    Py_ssize_t waiting = PySequence_Size(outgoing), loaded = 0, sent = 0, removed = 0;

    while (loaded < waiting && loaded < PARCELS && load(&parcels[loaded], outgoing, loaded) == 0)
        loaded++;
    if (loaded > 0)
        PyErr_Clear(); /* an entry that cannot be loaded is told when it is the first */
    Py_BEGIN_ALLOW_THREADS
    while (sent < loaded && send_parcel(&parcels[sent]) == 0)
        sent++;
    *error = sent < loaded ? errno : 0;
    Py_END_ALLOW_THREADS
    while (removed < sent && PySequence_DelItem(outgoing, 0) == 0)
        removed++;
    while (loaded > 0)
        unload(&parcels[--loaded]); /* not earlier: whatever is freed may run anything */
    return PyErr_Occurred() ? -1 : sent;
}

static PyObject *flush(PyObject *Py_UNUSED(module), PyObject *outgoing) {
    for (;;) {
        int error;
        Py_ssize_t sent = flush_batch(outgoing, &error);
        if (sent < 0)
            return NULL;
        switch (error) {
        case 0:
            if (sent == 0)
                Py_RETURN_TRUE;
            break;
        case EINTR:
            if (PyErr_CheckSignals() < 0)
                return NULL;
            break;
        case EAGAIN:
        case ENOBUFS:
        case ENOMEM:
        case ETOOMANYREFS:
            Py_RETURN_FALSE;
        default:
            errno = error;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
}

/* --- Receiving ------------------------------------------------------------------------------------------ */

#define CONTROL_SPACE (CMSG_SPACE(DESCRIPTOR_LIMIT * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred)))
#define ARENA (2 * (CONTROL_SPACE + MESSAGE_LIMIT)) /* two long messages or some thirty short ones */
#define BATCH 32

struct record {
    struct iovec place;
    struct msghdr header;
};

struct batch {
    int number; /* of messages that were received and are not yet recorded */
    int error;  /* that stopped it; 0: no room, enough, or ended */
    int ended;  /* the other side is gone */
    struct record records[BATCH];
    _Alignas(struct cmsghdr) char arena[ARENA];
};

/* Needs no GIL. */
static void receive_batch(struct batch *batch, int socket, Py_ssize_t limit) {
    size_t used = 0;
    batch->number = batch->error = batch->ended = 0;
    while (batch->number < limit && batch->number < BATCH && used + CONTROL_SPACE + MESSAGE_LIMIT <= ARENA &&
           !batch->ended) {
        struct record *record = &batch->records[batch->number];
        char *room = batch->arena + used;
        record->place = (struct iovec){room + CONTROL_SPACE, MESSAGE_LIMIT};
        record->header = (struct msghdr){
            .msg_iov = &record->place, .msg_iovlen = 1, .msg_control = room, .msg_controllen = CONTROL_SPACE};
        ssize_t size = recvmsg(socket, &record->header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (size < 0 && errno == ECONNRESET)
            continue; /* told once, and before the messages that the other side sent */
        if (size < 0) {
            batch->error = errno;
            return;
        }
        record->place.iov_len = (size_t)size;
        batch->ended = size == 0 && record->header.msg_controllen == 0;
        batch->number++;
        used += CONTROL_SPACE + ((size_t)size + 7) / 8 * 8;
    }
}

static void close_descriptors(struct msghdr *header) {
    for (struct cmsghdr *head = CMSG_FIRSTHDR(header); head != NULL; head = CMSG_NXTHDR(header, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = CMSG_LEN(0); at + sizeof(int) <= head->cmsg_len; at += sizeof(int))
            close(*(int *)((char *)head + at));
    }
}

static PyObject *ancillary_data(struct msghdr *header) {
    PyObject *list = PyList_New(0);
    struct cmsghdr *head = CMSG_FIRSTHDR(header);
    for (; list != NULL && head != NULL; head = CMSG_NXTHDR(header, head)) {
        PyObject *content = PyBytes_FromStringAndSize((char *)CMSG_DATA(head), head->cmsg_len - CMSG_LEN(0));
        PyObject *item = Py_BuildValue("iiN", head->cmsg_level, head->cmsg_type, content);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static int append_record(PyObject *arrivals, PyObject *tag, struct record *record) {
    PyObject *data = PyBytes_FromStringAndSize(record->place.iov_base, (Py_ssize_t)record->place.iov_len);
    PyObject *arrival = Py_BuildValue("[(O(NNiO))]", tag, data, ancillary_data(&record->header),
                                      record->header.msg_flags, Py_None);
    PyObject *joined = arrival == NULL ? NULL : PySequence_InPlaceConcat(arrivals, arrival);
    Py_XDECREF(arrival);
    Py_XDECREF(joined);
    return joined == NULL ? -1 : 0;
}

static void spin_for_batch(struct batch *batch, int socket, Py_ssize_t limit, double spin) {
    Py_BEGIN_ALLOW_THREADS
    int64_t deadline = spin > 0 ? deadline_after(spin) : 0;
    do
        receive_batch(batch, socket, limit);
    while (spin > 0 && batch->error == EAGAIN && batch->number == 0 && now() < deadline && sched_yield() == 0);
    Py_END_ALLOW_THREADS
}

static PyObject *receive_until(PyObject *sock, PyObject *arrivals, PyObject *tag, Py_ssize_t limit, double spin) {
    struct batch batch;
    Py_ssize_t received = 0;
    int socket = descriptor_of(sock);

    while (!PyErr_Occurred()) {
        spin_for_batch(&batch, socket, limit - received, spin);
        int recorded = 0;
        while (recorded < batch.number && append_record(arrivals, tag, &batch.records[recorded]) == 0)
            recorded++;
        received += recorded;
        for (; recorded < batch.number; recorded++)
            close_descriptors(&batch.records[recorded].header); /* no memory, or no deque */
        if (PyErr_Occurred() || (batch.error == EINTR && PyErr_CheckSignals() < 0))
            break;
        if (received >= limit || batch.ended || batch.error == EAGAIN)
            return PyLong_FromSsize_t(received);
        if (batch.error != 0 && batch.error != EINTR) {
            errno = batch.error;
            PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    return NULL;
}

static PyObject *receive(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    if (check_arity("receive", nargs, 4) < 0)
        return NULL;
    Py_ssize_t limit = PyLong_AsSsize_t(args[3]);
    return PyErr_Occurred() ? NULL : receive_until(args[0], args[1], args[2], limit, 0);
}

static PyObject *await_message(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    if (check_arity("await_message", nargs, 4) < 0)
        return NULL;
    double spin = PyFloat_AsDouble(args[3]);
    return PyErr_Occurred() ? NULL : receive_until(args[0], args[1], args[2], 1, spin);
}

/* --- A call and its answer ------------------------------------------------------------------------------ */

enum { OUTCOMES = 2, SEPARATE = 1, ERROR = 1 }; /* of _packet.py: Kind, OutcomeMode, Status */

struct __attribute__((packed)) lone_outcome { /* the lengths of three buffers, and two of them */
    uint64_t lengths[3];
    uint8_t mode, padding[3];
    uint32_t offset, units;
    uint64_t ran_ns;
    uint8_t status;
};

/* Status and payload, where a message is the answer to `ident` and nothing but one outcome; else NULL, and no error. */
static PyObject *lone_outcome_in(struct record *record, uint64_t ident) {
    const char *data = record->place.iov_base;
    Py_ssize_t size = (Py_ssize_t)record->place.iov_len;
    struct lone_outcome lone;
    struct header header;

    if (record->header.msg_controllen > 0 || record->header.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ||
        size < (Py_ssize_t)(sizeof(header) + sizeof(lone)) || parse(data, size, &header) != NULL ||
        header.kind != OUTCOMES || header.ident != ident || header.number != 3)
        return NULL;
    memcpy(&lone, data + sizeof(header), sizeof(lone));
    const size_t head = offsetof(struct lone_outcome, status) - offsetof(struct lone_outcome, mode);
    if (le64toh(lone.lengths[0]) != head || le64toh(lone.lengths[1]) != 1 || lone.mode != SEPARATE ||
        le32toh(lone.offset) != 0 || le32toh(lone.units) != 1 || lone.status > ERROR)
        return NULL;
    Py_ssize_t start = (Py_ssize_t)(sizeof(header) + sizeof(lone));
    return Py_BuildValue("(iy#)", lone.status, data + start, size - start);
}

static PyObject *send_and_hear(PyObject *outgoing, PyObject *sock, PyObject *arrivals, PyObject *tag, uint64_t ident,
                               PyObject *note, double spin) {
    struct batch batch;
    int socket = descriptor_of(sock);
    PyObject *all_sent = PyErr_Occurred() ? NULL : flush(NULL, outgoing);

    Py_XDECREF(all_sent); /* True, False or NULL: compared below, no more */
    if (all_sent != Py_True)
        return all_sent == NULL ? NULL : Py_NewRef(Py_None);
    for (;;) {
        spin_for_batch(&batch, socket, 1, spin);
        if (batch.number > 0) {
            struct record *record = &batch.records[0];
            PyObject *answer = lone_outcome_in(record, ident);
            if (answer == NULL && !PyErr_Occurred() && append_record(arrivals, tag, record) == 0)
                Py_RETURN_NONE;
            if (answer != NULL && PySequence_DelItem(note, 0) < 0)
                Py_CLEAR(answer);
            if (answer == NULL)
                close_descriptors(&record->header); /* no memory, or no deque */
            return answer;
        }
        if (batch.error == EAGAIN)
            Py_RETURN_NONE;
        errno = batch.error;
        if (errno != EINTR)
            return PyErr_SetFromErrno(PyExc_OSError);
        if (PyErr_CheckSignals() < 0)
            return NULL;
    }
}

static PyObject *exchange(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    if (check_arity("exchange", nargs, 10) < 0)
        return NULL;
    int epoll = descriptor_of(args[0]), watched = PyErr_Occurred() ? -1 : descriptor_of(args[1]);
    uint64_t armed = PyErr_Occurred() ? 0 : PyLong_AsUnsignedLongLong(args[2]);
    uint64_t ident = PyErr_Occurred() ? 0 : PyLong_AsUnsignedLongLong(args[7]);
    double spin = PyErr_Occurred() ? 0 : PyFloat_AsDouble(args[9]);
    struct epoll_event event = {.events = 0, .data.fd = watched};
    if (PyErr_Occurred())
        return NULL;
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, watched, &event) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *answer = send_and_hear(args[3], args[4], args[5], args[6], ident, args[8], spin);
    event.events = (uint32_t)armed;
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, watched, &event) < 0 && answer == Py_None) {
        Py_DECREF(answer);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return answer; /* with it the note is gone: it is told in any case */
}

static int milliseconds_until(int64_t deadline) {
    int64_t left = deadline - now();
    if (left <= 0)
        return 0;
    return left / 1000000 < INT_MAX ? (int)((left + 999999) / 1000000) : INT_MAX; /* never too early */
}

static PyObject *wait_ready(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    struct epoll_event events[READY_LIMIT];
    int number, for_ever;

    if (check_arity("wait_ready", nargs, 3) < 0)
        return NULL;
    int epoll = descriptor_of(args[0]);
    double spin = PyErr_Occurred() ? 0 : PyFloat_AsDouble(args[1]);
    for_ever = args[2] == Py_None;
    double timeout = PyErr_Occurred() || for_ever ? 0 : PyFloat_AsDouble(args[2]);
    if (PyErr_Occurred())
        return NULL;
    int64_t spun = deadline_after(spin), deadline = spun + (deadline_after(timeout) - now());
    for (int spinning = spin > 0;; spinning = 0) {
        Py_BEGIN_ALLOW_THREADS
        do
            number = epoll_wait(epoll, events, READY_LIMIT, spinning ? 0 : for_ever ? -1 : milliseconds_until(deadline));
        while (spinning && number == 0 && now() < spun && sched_yield() == 0);
        Py_END_ALLOW_THREADS
        if (number > 0 || (number == 0 && !spinning))
            break;
        if (number < 0 && errno != EINTR)
            return PyErr_SetFromErrno(PyExc_OSError);
        /* Also after a spin: a signal that came during it will not interrupt the wait. */
        if (PyErr_CheckSignals() < 0)
            return NULL;
    }
    PyObject *ready = PyList_New(number);
    for (int i = 0; ready != NULL && i < number; i++) {
        PyObject *descriptor = PyLong_FromLong(events[i].data.fd);
        if (descriptor == NULL || PyList_SetItem(ready, i, descriptor) < 0)
            Py_CLEAR(ready);
    }
    return ready;
}

/* --- Whether values can share a pickle (_sharing_py.py) ------------------------------------------------- */

#define DEEPEST 8       /* containers within one another */
#define PART 64         /* bytes of text that count as much as a value */
#define MOST_PARTS 2048 /* values to be looked at */
#define MOST_MET 512    /* lists and dicts to be remembered */

struct walk {
    PyObject **met; /* those met so far, hashed; or NULL: only what nobody else has a reference to will do */
    Py_ssize_t left, parts;
};

/* Whether a list or dict is met for the first time. */
static int is_first(struct walk *walk, PyObject *container) {
    size_t at = (uintptr_t)container / 16 * 0x9E3779B97F4A7C15ULL >> 32;
    while (walk->met[at %= 2 * MOST_MET] != NULL)
        if (walk->met[at++] == container)
            return 0;
    walk->met[at] = container;
    return --walk->left >= 0;
}

/* Whether a value consists of atoms, and of containers none of which is reached in two ways. `alone`: nobody else has a
   reference to what holds it. */
static int is_tree(struct walk *walk, PyObject *value, int alone, int depth) {
    Py_ssize_t length = PyUnicode_CheckExact(value) ? PyUnicode_GetLength(value)
                        : PyBytes_CheckExact(value) ? PyBytes_Size(value)
                                                    : -1;
    if ((walk->parts -= 1 + (length > 0 ? length / PART : 0)) < 0)
        return 0;
    if (length >= 0 || value == Py_None || PyLong_CheckExact(value) || PyFloat_CheckExact(value) || PyBool_Check(value))
        return 1;
    alone = alone && Py_REFCNT(value) == 1;
    if (depth == DEEPEST)
        return 0;
    if (PyTuple_CheckExact(value)) {
        for (Py_ssize_t at = 0; at < PyTuple_Size(value); at++)
            if (!is_tree(walk, PyTuple_GetItem(value, at), alone, depth + 1))
                return 0;
        return 1;
    }
    int is_dict = PyDict_CheckExact(value);
    if (!(is_dict || PyList_CheckExact(value)) || !(walk->met == NULL ? alone : is_first(walk, value)))
        return 0;
    PyObject *key, *item;
    for (Py_ssize_t at = 0; is_dict && PyDict_Next(value, &at, &key, &item);)
        if (!is_tree(walk, key, alone, depth + 1) || !is_tree(walk, item, alone, depth + 1))
            return 0;
    for (Py_ssize_t at = 0; !is_dict && at < PyList_Size(value); at++)
        if (!is_tree(walk, PyList_GetItem(value, at), alone, depth + 1))
            return 0;
    return 1;
}

/* Whether a value is small, and will be what it is when what runs next has run: it consists of atoms, and of containers
   that nobody else has a reference to. The caller has one. */
static int is_settled(PyObject *value, Py_ssize_t most_parts) {
    struct walk walk = {.parts = most_parts};
    return is_tree(&walk, value, 1, 0);
}

static PyObject *share_nothing(PyObject *Py_UNUSED(module), PyObject *values) {
    PyObject *met[2 * MOST_MET] = {NULL};
    struct walk walk = {.met = met, .left = MOST_MET, .parts = MOST_PARTS};

    if (check_list(values, "values") < 0)
        return NULL;
    int shared = 0;
    for (Py_ssize_t at = 0; !shared && at < PyList_Size(values); at++)
        shared = !is_tree(&walk, PyList_GetItem(values, at), 1, 0);
    return PyBool_FromLong(!shared);
}

/* --- A worker's page ------------------------------------------------------------------------------------ */

enum { CLAIM, MARK, START, TAIL, WORDS };
enum { TAKEN = 1, UNPICKLING = 2 }; /* of _page.Phase */

#define UNIT_LIMIT 4096
#define PACKET_LIMIT (1ULL << 48)

/* CLAIM: the low 32 bits of the packet's ident, then 16 for the next unit and 16 for the end of what is left. */
#define CLAIM_WORD(packet, next, end) ((uint64_t)(packet) << 32 | (uint64_t)(next) << 16 | (uint64_t)(end))
#define CLAIM_NEXT(claim) ((claim) >> 16 & 0xFFFF)
#define CLAIM_LEFT(claim) (CLAIM_NEXT(claim) < ((claim) & 0xFFFF))

#define LOAD(word) __atomic_load_n(&(word), __ATOMIC_ACQUIRE)
#define STORE(word, value) __atomic_store_n(&(word), (value), __ATOMIC_RELEASE)
#define EXCHANGE(word, seen, value) \
    __atomic_compare_exchange_n(&(word), &(seen), (value), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

static uint64_t *shared_words(PyObject *memory, Py_buffer *view, size_t words) {
    if (PyObject_GetBuffer(memory, view, PyBUF_WRITABLE) < 0)
        return NULL;
    if ((size_t)view->len >= words * sizeof(uint64_t) && (uintptr_t)view->buf % sizeof(uint64_t) == 0)
        return view->buf;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_ValueError, "a page or outbox must be aligned and hold all its words");
    return NULL;
}

static uint64_t *page_words(PyObject *page, Py_buffer *view) {
    return shared_words(page, view, WORDS);
}

static PyObject *page_begin(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer view;
    uint64_t packet, count, *words;

    if (check_arity("page_begin", nargs, 3) < 0 ||
        integer_within(args[1], "packet", 0, PACKET_LIMIT - 1, &packet) < 0 ||
        integer_within(args[2], "count", 1, UNIT_LIMIT, &count) < 0 || (words = page_words(args[0], &view)) == NULL)
        return NULL;
    STORE(words[CLAIM], CLAIM_WORD(packet, 0, count));
    STORE(words[START], (uint64_t)now());
    STORE(words[MARK], packet << 16 | TAKEN); /* last: a packet that is not marked has not begun */
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

/* The next unit, which is claimed and marked; -1: none is left; -2: an exception is set. `when`: that was, in ns. */
static long claim_next(PyObject *page, uint64_t *when) {
    Py_buffer view;
    long offset = -1;
    uint64_t *words = page_words(page, &view);

    if (words == NULL)
        return -2;
    uint64_t claim = LOAD(words[CLAIM]);
    while (offset < 0 && CLAIM_LEFT(claim)) {
        uint64_t next = CLAIM_NEXT(claim);
        if (EXCHANGE(words[CLAIM], claim, claim + CLAIM_WORD(0, 1, 0))) {
            *when = (uint64_t)now();
            STORE(words[START], *when);
            STORE(words[MARK], (words[MARK] & ~0xFFFFULL) | next << 4 | UNPICKLING);
            offset = (long)next;
        }
    }
    PyBuffer_Release(&view);
    return offset;
}

static PyObject *page_claim(PyObject *Py_UNUSED(module), PyObject *page) {
    uint64_t when;
    long offset = claim_next(page, &when);
    return offset < -1 ? NULL : PyLong_FromLong(offset);
}

#define GIL_TURN 5000000 /* ns for which a thread may keep others from running: sys.getswitchinterval() is as long */

/* Functions in C never come by where the interpreter would let another thread run. */
static void let_others_in(uint64_t when, uint64_t *turn) {
    if (when - *turn > GIL_TURN) {
        PyThreadState *state = PyEval_SaveThread();
        PyEval_RestoreThread(state);
        *turn = when;
    }
}

/* The value of a unit; NULL: an exception is set. A list does not keep the item: what is added to it goes with it. */
static PyObject *run_unit(PyObject *function, PyObject *items, long unit) {
    PyObject *item = PySequence_GetItem(items, unit);
    if (item != NULL && PyList_CheckExact(items))
        PyList_SetItem(items, unit, Py_NewRef(Py_None));
    PyObject *value = item == NULL ? NULL : PyObject_CallFunctionObjArgs(function, item, NULL);
    Py_XDECREF(item);
    /* A handler is run before the value is noted: what it raises is this unit's. */
    if (value != NULL && PyErr_CheckSignals() < 0)
        Py_CLEAR(value);
    return value;
}

/* The page is not held while the function runs: that may fork, and the child is to unmap it. */
static PyObject *page_run(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    if (check_arity("page_run", nargs, 4) < 0)
        return NULL;
    if (check_list(args[3], "values") < 0)
        return NULL;
    uint64_t when = 0, turn = 0;
    for (long unit = (long)PyList_Size(args[3]); unit >= 0; unit = claim_next(args[0], &when)) {
        let_others_in(when, &turn);
        PyObject *value = run_unit(args[1], args[2], unit), *left = NULL;
        int kept = value == NULL ? -1 : is_settled(value, MOST_PARTS);
        if (kept > 0 && PyList_Append(args[3], value) < 0)
            kept = -1;
        else if (kept == 0)
            left = PyTuple_Pack(1, value);
        Py_XDECREF(value);
        if (kept <= 0)
            return left;
    }
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *page_take(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer view;
    uint64_t packet, *words;

    if (check_arity("page_take", nargs, 2) < 0 ||
        integer_within(args[1], "packet", 0, PACKET_LIMIT - 1, &packet) < 0 ||
        (words = page_words(args[0], &view)) == NULL)
        return NULL;
    uint64_t tail = words[TAIL], claim = LOAD(words[CLAIM]);
    int taken = tail >> 16 == packet && (tail & 0xFFFF) != 0;
    while (!taken && claim >> 32 == (packet & UINT32_MAX) && CLAIM_LEFT(claim)) {
        uint64_t first = CLAIM_NEXT(claim);
        taken = EXCHANGE(words[CLAIM], claim, CLAIM_WORD(packet, first, first));
        tail = packet << 16 | first << 4 | UNPICKLING;
    }
    if (taken)
        words[TAIL] = tail;
    PyBuffer_Release(&view);
    return PyLong_FromLong(taken ? (long)(tail >> 4 & 0xFFF) : -1);
}

/* --- A worker's outbox ---------------------------------------------------------------------------------- */

#define UNIT_BITS 13
#define BYTE_BITS 18
#define UNITS_AT(word, shift) ((word) >> (shift) & ((1ULL << UNIT_BITS) - 1))
#define ONE_UNIT (1ULL << BYTE_BITS)
#define LONGEST_COMMIT (16 * 1024)

struct __attribute__((packed)) committed_head {
    uint32_t length;
    uint8_t status;
};

/* 1: the outcome is committed, and its payload noted; 0: it is not to lie there, or has no room; -1: an exception. */
static int commit(PyObject *outbox, uint8_t status, PyObject *payload, PyObject *payloads) {
    Py_buffer view;
    if (!PyBytes_CheckExact(payload) || PyBytes_Size(payload) > LONGEST_COMMIT)
        return 0;
    struct committed_head head = {.length = htole32((uint32_t)PyBytes_Size(payload)), .status = status};
    uint64_t *word = shared_words(outbox, &view, 1);
    if (word == NULL)
        return -1;
    size_t start = *word & (ONE_UNIT - 1), size = sizeof(head) + (size_t)PyBytes_Size(payload);
    int committed = start + size <= (size_t)view.len - sizeof(*word);
    if (committed) {
        char *to = (char *)(word + 1) + start;
        memcpy(to, &head, sizeof(head));
        memcpy(to + sizeof(head), PyBytes_AsString(payload), size - sizeof(head));
        if (PyList_Append(payloads, payload) < 0)
            committed = -1;
        else
            STORE(*word, *word + ONE_UNIT + size);
    }
    PyBuffer_Release(&view);
    return committed;
}

static PyObject *outbox_append(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    uint64_t status;
    if (check_arity("outbox_append", nargs, 4) < 0 || integer_within(args[1], "status", 0, 0xFF, &status) < 0 ||
        check_list(args[3], "payloads") < 0)
        return NULL;
    int committed = commit(args[0], (uint8_t)status, args[2], args[3]);
    return committed < 0 ? NULL : PyBool_FromLong(committed);
}

/* The unit that is to be committed next; below 0: an exception is set. */
static long unit_to_commit(PyObject *outbox) {
    Py_buffer view;
    uint64_t *word = shared_words(outbox, &view, 1);
    if (word == NULL)
        return -2;
    long unit = (long)(UNITS_AT(*word, UNIT_BITS + BYTE_BITS) + UNITS_AT(*word, BYTE_BITS));
    PyBuffer_Release(&view);
    return unit;
}

static PyObject *page_run_committing(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    if (check_arity("page_run_committing", nargs, 7) < 0 || check_list(args[5], "payloads") < 0 ||
        check_list(args[6], "values") < 0)
        return NULL;
    PyObject *page = args[0], *outbox = args[1], *dumps = args[4], *payloads = args[5];
    uint64_t when = 0, turn = 0;
    for (long unit = unit_to_commit(outbox); unit >= 0; unit = claim_next(page, &when)) {
        let_others_in(when, &turn);
        PyObject *value = run_unit(args[2], args[3], unit), *left = NULL;
        int committed = value == NULL ? -1 : is_settled(value, LONGEST_COMMIT / PART);
        if (committed > 0) {
            PyObject *payload = PyObject_CallFunctionObjArgs(dumps, value, NULL);
            committed = payload == NULL ? -1 : commit(outbox, 0, payload, payloads);
            Py_XDECREF(payload);
        }
        if (committed > 0 && PyList_Append(args[6], value) < 0)
            committed = -1;
        else if (committed == 0)
            left = PyTuple_Pack(1, value);
        Py_XDECREF(value);
        if (committed <= 0)
            return left;
    }
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* --- Slabs -----------------------------------------------------------------------------------------------

   None of these calls waits for anything, so the GIL is kept: where two threads want it, giving it away and taking it
   back costs more than the call. */

static int descriptor_from(PyObject *number, int *descriptor) {
    uint64_t value;
    if (integer_within(number, "descriptor", 0, INT_MAX, &value) < 0)
        return -1;
    *descriptor = (int)value;
    return 0;
}

static PyObject *slab_lend(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    char path[32];
    int descriptor;

    if (check_arity("slab_lend", nargs, 2) < 0 || descriptor_from(args[0], &descriptor) < 0)
        return NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    int lent = open(path, O_RDONLY | O_CLOEXEC);
    if (lent < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (flock(lent, LOCK_SH | LOCK_NB) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        close(lent);
        return NULL;
    }
    PyObject *number = PyLong_FromLong(lent);
    PyObject *result = number == NULL ? NULL : PyObject_CallFunctionObjArgs(args[1], number, NULL);
    Py_XDECREF(number);
    if (result == NULL)
        close(lent);
    return result;
}

static PyObject *slab_is_free(PyObject *Py_UNUSED(module), PyObject *number) {
    int descriptor;

    if (descriptor_from(number, &descriptor) < 0)
        return NULL;
    if (flock(descriptor, LOCK_EX | LOCK_NB) < 0)
        Py_RETURN_FALSE;
    if (flock(descriptor, LOCK_UN) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_TRUE;
}

static PyObject *slab_seals(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    struct stat status;
    uint64_t size;
    int descriptor;

    if (check_arity("slab_seals", nargs, 2) < 0 || descriptor_from(args[0], &descriptor) < 0 ||
        integer_within(args[1], "size", 1, PY_SSIZE_T_MAX, &size) < 0)
        return NULL;
    int seals = fcntl(descriptor, F_GET_SEALS);
    if (seals < 0 || fstat(descriptor, &status) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromLong((uint64_t)status.st_size < size ? 0 : seals);
}

/* What is large is stored past the caches. The processor need not read it first, to write over it: where memory is the
   limit that saves a third of the time. */
static void copy(char *target, const char *source, size_t size) {
#ifdef __SSE2__
    if (size >= STREAMED) {
        size_t head = -(uintptr_t)target % sizeof(__m128i), lines = (size - head) / LINE;
        memcpy(target, source, head);
        __m128i *to = (__m128i *)(target + head);
        const __m128i *from = (const __m128i *)(source + head);
        for (size_t line = 0; line < lines; line++, to += 4, from += 4) {
            __m128i first = _mm_loadu_si128(from), second = _mm_loadu_si128(from + 1);
            __m128i third = _mm_loadu_si128(from + 2), fourth = _mm_loadu_si128(from + 3);
            _mm_stream_si128(to, first);
            _mm_stream_si128(to + 1, second);
            _mm_stream_si128(to + 2, third);
            _mm_stream_si128(to + 3, fourth);
        }
        _mm_sfence();
        size_t copied = head + lines * LINE;
        target += copied, source += copied, size -= copied;
    }
#endif
    memcpy(target, source, size);
}

static PyObject *slab_copy(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer target, source;
    uint64_t start;

    if (check_arity("slab_copy", nargs, 3) < 0 || integer_within(args[1], "start", 0, PY_SSIZE_T_MAX, &start) < 0 ||
        PyObject_GetBuffer(args[0], &target, PyBUF_WRITABLE) < 0)
        return NULL;
    if (PyObject_GetBuffer(args[2], &source, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&target);
        return NULL;
    }
    int fits = start <= (uint64_t)target.len && (uint64_t)source.len <= (uint64_t)target.len - start;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "a slab has no room for that there");
    else
        copy((char *)target.buf + start, source.buf, (size_t)source.len);
    PyBuffer_Release(&source);
    PyBuffer_Release(&target);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

typedef struct {
    PyObject_HEAD
    void *start;
    Py_ssize_t size;
    int readonly;
    PyObject *weak_references;
} Mapping;

static void mapping_dealloc(PyObject *self) {
    Mapping *mapping = (Mapping *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (mapping->weak_references != NULL)
        PyObject_ClearWeakRefs(self);
    if (mapping->start != MAP_FAILED)
        munmap(mapping->start, (size_t)mapping->size);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int mapping_getbuffer(PyObject *self, Py_buffer *view, int flags) {
    Mapping *mapping = (Mapping *)self;
    return PyBuffer_FillInfo(view, self, mapping->start, mapping->size, mapping->readonly, flags);
}

static Py_ssize_t mapping_length(PyObject *self) {
    return ((Mapping *)self)->size;
}

static PyMemberDef mapping_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Mapping, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot mapping_slots[] = {
    {Py_tp_dealloc, mapping_dealloc},
    {Py_tp_members, mapping_members},
    {Py_bf_getbuffer, mapping_getbuffer},
    {Py_sq_length, mapping_length},
    {0, NULL},
};

static PyType_Spec mapping_spec = {
    .name = "pairpool._framing_c.Mapping",
    .basicsize = sizeof(Mapping),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mapping_slots,
};

static PyObject *slab_map(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    uint64_t size;
    int descriptor;

    if (check_arity("slab_map", nargs, 3) < 0 || descriptor_from(args[0], &descriptor) < 0 ||
        integer_within(args[1], "size", 1, PY_SSIZE_T_MAX, &size) < 0)
        return NULL;
    int frozen = PyObject_IsTrue(args[2]);
    if (frozen < 0)
        return NULL;
    PyTypeObject *type = *(PyTypeObject **)PyModule_GetState(module);
    Mapping *mapping = PyObject_New(Mapping, type);
    if (mapping == NULL)
        return NULL;
    mapping->weak_references = NULL;
    mapping->size = (Py_ssize_t)size;
    mapping->readonly = frozen;
    mapping->start = mmap(NULL, (size_t)size, frozen ? PROT_READ : PROT_READ | PROT_WRITE,
                          frozen ? MAP_SHARED : MAP_PRIVATE, descriptor, 0);
    if (mapping->start == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(mapping);
        return NULL;
    }
    return (PyObject *)mapping;
}

/* --- The module ----------------------------------------------------------------------------------------- */

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL

static PyMethodDef methods[] = {
    {"pack", FAST(pack), "pack($module, kind, ident, buffers, /)\n--\n\n"},
    {"unpack", unpack, METH_O, "unpack($module, message, /)\n--\n\n"},
    {"flush", flush, METH_O, "flush($module, outgoing, /)\n--\n\n"},
    {"receive", FAST(receive), "receive($module, sock, arrivals, tag, limit, /)\n--\n\n"},
    {"await_message", FAST(await_message), "await_message($module, sock, arrivals, tag, spin, /)\n--\n\n"},
    {"exchange", FAST(exchange),
     "exchange($module, epoll, watched, armed, outgoing, sock, arrivals, tag, ident, note, spin, /)\n--\n\n"},
    {"wait_ready", FAST(wait_ready), "wait_ready($module, epoll, spin, timeout, /)\n--\n\n"},
    {"page_begin", FAST(page_begin), "page_begin($module, page, packet, count, /)\n--\n\n"},
    {"page_claim", page_claim, METH_O, "page_claim($module, page, /)\n--\n\n"},
    {"page_run", FAST(page_run), "page_run($module, page, function, items, values, /)\n--\n\n"},
    {"page_run_committing", FAST(page_run_committing),
     "page_run_committing($module, page, outbox, function, items, dumps, payloads, values, /)\n--\n\n"},
    {"share_nothing", share_nothing, METH_O, "share_nothing($module, values, /)\n--\n\n"},
    {"outbox_append", FAST(outbox_append), "outbox_append($module, outbox, status, payload, payloads, /)\n--\n\n"},
    {"page_take", FAST(page_take), "page_take($module, page, packet, /)\n--\n\n"},
    {"slab_lend", FAST(slab_lend), "slab_lend($module, descriptor, own, /)\n--\n\n"},
    {"slab_copy", FAST(slab_copy), "slab_copy($module, target, start, source, /)\n--\n\n"},
    {"slab_is_free", slab_is_free, METH_O, "slab_is_free($module, descriptor, /)\n--\n\n"},
    {"slab_seals", FAST(slab_seals), "slab_seals($module, descriptor, size, /)\n--\n\n"},
    {"slab_map", FAST(slab_map), "slab_map($module, descriptor, size, frozen, /)\n--\n\n"},
    {NULL, NULL, 0, NULL},
};

static int fill_module(PyObject *module) {
    PyObject **type = PyModule_GetState(module);
    *type = PyType_FromModuleAndSpec(module, &mapping_spec, NULL);
    if (*type == NULL)
        return -1;
    return PyModule_AddIntMacro(module, MESSAGE_LIMIT) < 0 || PyModule_AddIntMacro(module, READY_LIMIT) < 0 ||
                   PyModule_AddIntMacro(module, UNIT_LIMIT) < 0 ||
                   PyModule_AddIntMacro(module, LONGEST_COMMIT) < 0 || PyModule_AddIntMacro(module, UNIT_BITS) < 0 ||
                   PyModule_AddIntMacro(module, BYTE_BITS) < 0 ||
                   PyModule_AddObjectRef(module, "PIPED_CLAIMS", Py_False) < 0 ||
                   PyModule_AddObjectRef(module, "MAPPINGS_KEEP_DESCRIPTORS", Py_False) < 0
               ? -1
               : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill_module},
#if (!defined(Py_LIMITED_API) && PY_VERSION_HEX >= 0x030C0000) || Py_LIMITED_API + 0 >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if (!defined(Py_LIMITED_API) && PY_VERSION_HEX >= 0x030D0000) || Py_LIMITED_API + 0 >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static int traverse_module(PyObject *module, visitproc visit, void *arg) {
    Py_VISIT(*(PyObject **)PyModule_GetState(module));
    return 0;
}

static int clear_module(PyObject *module) {
    Py_CLEAR(*(PyObject **)PyModule_GetState(module));
    return 0;
}

static void free_module(void *module) {
    clear_module(module);
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "pairpool._framing_c",
    .m_doc = "The framing in C; pairpool._framing_py, _transfer_py and _sharing_py document each function.",
    .m_size = sizeof(PyObject *),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = traverse_module,
    .m_clear = clear_module,
    .m_free = free_module,
};

PyMODINIT_FUNC PyInit__framing_c(void) {
    return PyModuleDef_Init(&definition);
}
