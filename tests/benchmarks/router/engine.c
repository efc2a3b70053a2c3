/* An engine without a model: answers the OpenAI routes on loopback, so that what is measured is the router before it.
 *
 *     engine BASE_PORT PORTS
 *
 * One thread, one epoll. A request says by its prompt what it wants: "[chunks=100 interval_us=50000 delay_us=0]"; with
 * "stream": true it gets that many events, one write each, as vLLM sends them (a finish_reason in the last one, a usage
 * event if asked for, then [DONE]); without, one JSON answer. Every content event carries the time it was sent, as
 * "@<19 digits of nanoseconds>". A prefill request (kv_transfer_params.do_remote_decode) is answered with parameters;
 * a decode request is counted as good only if it carries a prefill's block ids.
 * GET /__stats tells what was seen on all ports, GET /__reset forgets it. Anything else it answers is what routers ask
 * engines for at their start: models, health, metrics.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 512
#define READ_ROOM 65536
#define WRITE_AHEAD 65536 /* bytes a stream may have unsent before it gets no further event */
#define NEVER (-1)

typedef unsigned long long nanoseconds;

enum answer { UNARY, PREFILL, STREAM };

struct connection {
    int fd, port, listening, closed, watching_out;
    char *in, *out;
    size_t in_size, in_room, out_size, out_room;
    int answering; /* a request is being answered: later bytes wait */
    enum answer answer;
    long left, interval_us;
    int usage;        /* the request asked for a usage event */
    nanoseconds next; /* when the next piece is due; 0 = as fast as it is taken */
    int place;        /* in the heap of timed answers, or NEVER */
    int fast_place;   /* in the list of answers without a pace, or NEVER */
    struct connection *next_dead;
};

struct counts {
    unsigned long long requests, active, most, prefills, decodes, bad_decodes, aborted, done, connections;
};

static int poller, base_port, ports;
static struct counts total;
static struct connection **heap, **fast, *dead;
static int heap_size, heap_room, fast_size, fast_room;

static nanoseconds now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (nanoseconds)t.tv_sec * 1000000000ULL + (nanoseconds)t.tv_nsec;
}

static void *grown(void *data, size_t size) {
    void *more = realloc(data, size);
    if (!more) {
        perror("engine: memory");
        exit(1);
    }
    return more;
}

/* ---- timed answers: a binary heap by `next` ---- */

static void put(int place, struct connection *c) {
    heap[place] = c;
    c->place = place;
}

static void rise(int place) {
    while (place && heap[place]->next < heap[(place - 1) / 2]->next) {
        struct connection *child = heap[place], *parent = heap[(place - 1) / 2];
        put((place - 1) / 2, child);
        put(place, parent);
        place = (place - 1) / 2;
    }
}

static void sink(int place) {
    for (;;) {
        int child = 2 * place + 1;
        if (child >= heap_size) return;
        if (child + 1 < heap_size && heap[child + 1]->next < heap[child]->next) child++;
        if (heap[place]->next <= heap[child]->next) return;
        struct connection *up = heap[child], *down = heap[place];
        put(place, up);
        put(child, down);
        place = child;
    }
}

static void wait_until_due(struct connection *c) {
    if (heap_size == heap_room) {
        heap_room = heap_room ? heap_room * 2 : 1024;
        heap = grown(heap, (size_t)heap_room * sizeof *heap);
    }
    put(heap_size++, c);
    rise(c->place);
}

static void forget_timer(struct connection *c) {
    int place = c->place;
    if (place != NEVER) {
        c->place = NEVER;
        if (place < --heap_size) {
            struct connection *moved = heap[heap_size];
            put(place, moved);
            rise(place);
            sink(moved->place);
        }
    }
    if (c->fast_place != NEVER) {
        struct connection *moved = fast[--fast_size];
        fast[c->fast_place] = moved;
        moved->fast_place = c->fast_place;
        c->fast_place = NEVER;
    }
}

static void run_fast(struct connection *c) {
    if (fast_size == fast_room) {
        fast_room = fast_room ? fast_room * 2 : 1024;
        fast = grown(fast, (size_t)fast_room * sizeof *fast);
    }
    c->fast_place = fast_size;
    fast[fast_size++] = c;
}

/* ---- connections ---- */

static void watch(struct connection *c) {
    struct epoll_event event = {.events = EPOLLIN | (c->watching_out ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static void end_answer(struct connection *c, int whole) {
    if (!c->answering) return;
    forget_timer(c);
    c->answering = 0;
    total.active--;
    if (whole)
        total.done++;
    else
        total.aborted++;
}

static void close_connection(struct connection *c) {
    if (c->closed) return;
    end_answer(c, 0);
    c->closed = 1;
    close(c->fd);
    c->next_dead = dead;
    dead = c;
}

static void send_bytes(struct connection *c, const char *data, size_t size) {
    if (!c->out_size) {
        ssize_t written = write(c->fd, data, size);
        if (written < 0) {
            if (errno != EAGAIN) {
                close_connection(c);
                return;
            }
            written = 0;
        }
        data += written;
        size -= (size_t)written;
        if (!size) return;
    }
    if (c->out_size + size > c->out_room) {
        c->out_room = (c->out_size + size) * 2;
        c->out = grown(c->out, c->out_room);
    }
    memcpy(c->out + c->out_size, data, size);
    c->out_size += size;
    if (!c->watching_out) {
        c->watching_out = 1;
        watch(c);
    }
}

static void flush(struct connection *c) {
    ssize_t written = write(c->fd, c->out, c->out_size);
    if (written < 0) {
        if (errno != EAGAIN) close_connection(c);
        return;
    }
    memmove(c->out, c->out + written, c->out_size - (size_t)written);
    c->out_size -= (size_t)written;
    if (!c->out_size) {
        c->watching_out = 0;
        watch(c);
    }
}

static void send_json(struct connection *c, int status, const char *body) {
    char head[512];
    static char answer[16384];
    int size = snprintf(head, sizeof head,
                        "HTTP/1.1 %d %s\r\ndate: Fri, 20 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
                        "content-length: %zu\r\ncontent-type: application/json\r\n\r\n",
                        status, status == 200 ? "OK" : "Not Found", strlen(body));
    memcpy(answer, head, (size_t)size);
    memcpy(answer + size, body, strlen(body));
    send_bytes(c, answer, (size_t)size + strlen(body));
}

/* ---- answers ---- */

static const char *UNARY_BODY =
    "{\"id\":\"chatcmpl-6f1e0a2b3c4d5e6f7a8b9c0d1e2f3a4b\",\"object\":\"chat.completion\",\"created\":1764000000,"
    "\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox "
    "jumps over the lazy dog and then it rests for some time near the river bank. The quick brown fox jumps over the "
    "lazy dog and then it rests for some time.\"},\"logprobs\":null,\"finish_reason\":\"length\","
    "\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":200,\"total_tokens\":232,\"completion_tokens\":32,"
    "\"prompt_tokens_details\":null}}";

#define EVENT_HEAD \
    "data: {\"id\":\"chatcmpl-6f1e0a2b3c4d5e6f7a8b9c0d\",\"object\":\"chat.completion.chunk\"," \
    "\"created\":1764000000,\"model\":\"m\",\"choices\":["

static const char *SSE_HEAD =
    "HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

static void send_event(struct connection *c, const char *event) {
    char framed[1024];
    int size = snprintf(framed, sizeof framed, "%zx\r\n%s\r\n", strlen(event), event);
    send_bytes(c, framed, (size_t)size);
}

static void send_token(struct connection *c, int last) {
    char event[768];
    snprintf(event, sizeof event,
             EVENT_HEAD "{\"index\":0,\"delta\":{\"content\":\" @%019llu\"},\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
             now(), last ? "\"stop\"" : "null");
    send_event(c, event);
}

static void send_end(struct connection *c) {
    if (c->usage) {
        send_event(c, EVENT_HEAD
                   "],\"usage\":{\"prompt_tokens\":200,\"total_tokens\":300,\"completion_tokens\":100}}\n\n");
        if (c->closed) return;
    }
    end_answer(c, 1);
    send_event(c, "data: [DONE]\n\n");
    if (!c->closed) send_bytes(c, "0\r\n\r\n", 5);
}

static void send_prefill(struct connection *c) {
    char body[1024];
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-6f1e0a2b3c4d5e6f\",\"object\":\"chat.completion\",\"created\":1764000000,\"model\":\"m\","
             "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The\"},\"logprobs\":null,"
             "\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":200,\"total_tokens\":201,"
             "\"completion_tokens\":1},\"kv_transfer_params\":{\"do_remote_prefill\":true,\"do_remote_decode\":false,"
             "\"remote_block_ids\":[[101,102,103,104,105,106,107,108,109,110,111,112,113]],"
             "\"remote_engine_id\":\"engine-%d-abcdef\",\"remote_request_id\":\"chatcmpl-1\","
             "\"remote_host\":\"127.0.0.1\",\"remote_port\":%d,\"tp_size\":1}}",
             base_port + c->port, base_port + c->port);
    send_json(c, 200, body);
}

/* Send what is due of an answer; afterwards the connection may be closed or free for its next request. */
static void step(struct connection *c) {
    if (c->answer == STREAM && c->left > 0) {
        c->left--;
        send_token(c, c->left == 0);
        if (c->closed) return;
        if (c->left) {
            c->next += (nanoseconds)c->interval_us * 1000;
            return;
        }
    }
    if (c->answer == STREAM) {
        send_end(c);
        return;
    }
    end_answer(c, 1);
    if (c->answer == PREFILL)
        send_prefill(c);
    else
        send_json(c, 200, UNARY_BODY);
}

/* ---- requests ---- */

static long number(const char *text, const char *key, long otherwise) {
    const char *found = strstr(text, key);
    return found ? atol(found + strlen(key)) : otherwise;
}

/* Whether the JSON text has `key`: true, with or without blanks. */
static int is_true(const char *body, const char *key) {
    for (const char *at = body; (at = strstr(at, key));) {
        at += strlen(key);
        while (*at == ' ') at++;
        if (*at++ != ':') continue;
        while (*at == ' ') at++;
        if (!strncmp(at, "true", 4)) return 1;
    }
    return 0;
}

static int has_blocks(const char *body) {
    const char *at = strstr(body, "\"remote_block_ids\"");
    if (!at) return 0;
    at += strlen("\"remote_block_ids\"");
    while (*at == ' ' || *at == ':') at++;
    return *at == '[';
}

static void answer_get(struct connection *c, const char *path) {
    char body[1024];
    if (!strncmp(path, "/__stats", 8)) {
        snprintf(body, sizeof body,
                 "{\"requests\":%llu,\"active\":%llu,\"most\":%llu,\"prefills\":%llu,\"decodes\":%llu,"
                 "\"badDecodes\":%llu,\"aborted\":%llu,\"done\":%llu,\"connections\":%llu}",
                 total.requests, total.active, total.most, total.prefills, total.decodes, total.bad_decodes,
                 total.aborted, total.done, total.connections);
        send_json(c, 200, body);
    } else if (!strncmp(path, "/__reset", 8)) {
        total = (struct counts){.active = total.active, .most = total.active};
        send_json(c, 200, "{}");
    } else if (!strncmp(path, "/v1/models", 10)) {
        send_json(c, 200,
                  "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":1764000000,"
                  "\"owned_by\":\"vllm\",\"root\":\"m\",\"parent\":null,\"max_model_len\":32768}]}");
    } else {
        send_json(c, 200,
                  "{\"status\":\"ok\",\"model_path\":\"m\",\"model_type\":\"llama\",\"served_model_name\":\"m\","
                  "\"tp_size\":1,\"dp_size\":1,\"version\":\"0.11.0\",\"is_generation\":true}");
    }
}

static void answer_post(struct connection *c, const char *body) {
    int transfers = strstr(body, "\"kv_transfer_params\"") != NULL;
    long delay_us = number(body, "delay_us=", 0);
    total.requests++;
    total.active++;
    if (total.active > total.most) total.most = total.active;
    c->answering = 1;
    c->left = number(body, "chunks=", 100);
    c->interval_us = number(body, "interval_us=", 0);
    c->usage = is_true(body, "\"include_usage\"");
    c->answer = UNARY;
    if (transfers && is_true(body, "\"do_remote_decode\"")) {
        total.prefills++;
        c->answer = PREFILL;
    } else {
        if (transfers && has_blocks(body)) total.decodes++;
        if (transfers && !has_blocks(body)) total.bad_decodes++;
        if (is_true(body, "\"stream\"")) c->answer = STREAM;
    }
    if (c->answer == STREAM) send_bytes(c, SSE_HEAD, strlen(SSE_HEAD));
    if (c->closed) return;
    c->next = now() + (nanoseconds)delay_us * 1000;
    if (c->answer == STREAM && !c->interval_us && !delay_us)
        run_fast(c);
    else if (c->answer != STREAM && !delay_us)
        step(c);
    else
        wait_until_due(c);
}

static void answer_request(struct connection *c, const char *head, const char *body) {
    const char *path = strchr(head, ' ');
    path = path ? path + 1 : head;
    if (!strncmp(head, "GET ", 4))
        answer_get(c, path);
    else if (strncmp(path, "/v1/chat/completions ", 21) && strncmp(path, "/v1/completions ", 16))
        send_json(c, 404, "{\"detail\":\"Not Found\"}"); /* as vLLM answers a route it lacks */
    else
        answer_post(c, body);
}

/* Copy a chunked body into `body`; returns the bytes it took of `data`, or 0 while it is not whole. */
static size_t dechunk(const char *data, size_t size, char *body) {
    const char *at = data, *end = data + size;
    size_t filled = 0;
    for (;;) {
        const char *line = memmem(at, (size_t)(end - at), "\r\n", 2);
        if (!line) return 0;
        size_t length = strtoul(at, NULL, 16);
        at = line + 2;
        if ((size_t)(end - at) < length + 2) return 0;
        memcpy(body + filled, at, length);
        filled += length;
        at += length + 2;
        if (!length) {
            body[filled] = 0;
            return (size_t)(at - data);
        }
    }
}

/* Answer the requests that are in the buffer whole; one at a time. */
static void read_requests(struct connection *c) {
    static char *body;
    static size_t body_room;
    while (!c->closed && !c->answering) {
        char *end = c->in_size ? memmem(c->in, c->in_size, "\r\n\r\n", 4) : NULL;
        if (!end) return;
        size_t head = (size_t)(end - c->in) + 4, length = 0, used;
        int chunked = 0;
        for (char *line = c->in; (line = memmem(line, (size_t)(end + 2 - line), "\r\n", 2)) && line < end;) {
            line += 2;
            if (!strncasecmp(line, "content-length:", 15)) length = strtoul(line + 15, NULL, 10);
            if (!strncasecmp(line, "transfer-encoding:", 18)) chunked = 1;
        }
        if (body_room < c->in_size + 1) {
            body_room = c->in_size * 2 + READ_ROOM;
            body = grown(body, body_room);
        }
        if (chunked) {
            used = dechunk(c->in + head, c->in_size - head, body);
            if (!used) return;
        } else {
            if (c->in_size < head + length) return;
            memcpy(body, c->in + head, length);
            body[length] = 0;
            used = length;
        }
        *end = 0;
        answer_request(c, c->in, body);
        if (c->closed) return;
        memmove(c->in, c->in + head + used, c->in_size - head - used);
        c->in_size -= head + used;
    }
}

static void read_bytes(struct connection *c) {
    for (;;) {
        if (c->in_room - c->in_size < READ_ROOM / 16) {
            c->in_room = c->in_room * 2 + READ_ROOM / 16;
            c->in = grown(c->in, c->in_room);
        }
        size_t room = c->in_room - c->in_size - 1;
        ssize_t got = read(c->fd, c->in + c->in_size, room);
        if (got > 0) {
            c->in_size += (size_t)got;
            if ((size_t)got < room) break;
        } else {
            if (got == 0 || errno != EAGAIN) close_connection(c);
            break;
        }
    }
    if (!c->closed) read_requests(c);
}

static void accept_all(struct connection *listener) {
    for (;;) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK), on = 1;
        if (fd < 0) return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = calloc(1, sizeof *c);
        if (!c) exit(1);
        c->fd = fd;
        c->port = listener->port;
        c->place = c->fast_place = NEVER;
        total.connections++;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static void listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((unsigned short)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (void *)&address, sizeof address) || listen(fd, 4096)) {
        perror("engine: listen");
        exit(1);
    }
    struct connection *c = calloc(1, sizeof *c);
    if (!c) exit(1);
    c->fd = fd;
    c->port = port - base_port;
    c->listening = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void serve(const struct epoll_event *event) {
    struct connection *c = event->data.ptr;
    if (c->listening) {
        accept_all(c);
        return;
    }
    if (c->closed) return;
    if (event->events & EPOLLOUT && c->out_size) flush(c);
    if (!c->closed && event->events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_bytes(c);
}

static void send_due(void) {
    nanoseconds at = now();
    while (heap_size && heap[0]->next <= at) {
        struct connection *c = heap[0];
        step(c);
        if (c->closed) continue;
        if (c->answering)
            sink(c->place);
        else
            read_requests(c);
    }
    for (int i = fast_size - 1; i >= 0; i--) {
        struct connection *c = fast[i];
        if (c->out_size > WRITE_AHEAD) continue;
        step(c);
        if (!c->closed && !c->answering) read_requests(c);
        if (i > fast_size) i = fast_size;
    }
}

/* How long nothing is due, NULL for as long as nothing arrives. A stream its reader does not take waits for its socket. */
static const struct timespec *pause_time(void) {
    static struct timespec time;
    for (int i = 0; i < fast_size; i++)
        if (fast[i]->out_size <= WRITE_AHEAD) return memset(&time, 0, sizeof time);
    if (!heap_size) return NULL;
    nanoseconds at = now(), left = heap[0]->next > at ? heap[0]->next - at : 0;
    time = (struct timespec){.tv_sec = (time_t)(left / 1000000000ULL), .tv_nsec = (long)(left % 1000000000ULL)};
    return &time;
}

static void bury(void) {
    while (dead) {
        struct connection *c = dead;
        dead = c->next_dead;
        free(c->in);
        free(c->out);
        free(c);
    }
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "usage: engine BASE_PORT PORTS\n");
        return 2;
    }
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGPIPE, SIG_IGN);
    base_port = atoi(arguments[1]);
    ports = atoi(arguments[2]);
    poller = epoll_create1(0);
    for (int i = 0; i < ports; i++) listen_on(base_port + i);
    struct epoll_event events[EVENTS];
    for (;;) {
        int ready = epoll_pwait2(poller, events, EVENTS, pause_time(), NULL);
        for (int i = 0; i < ready; i++) serve(&events[i]);
        send_due();
        bury();
    }
}
