/* A load generator for one loopback port: closed loop, or open loop at a fixed rate, and every answer is checked.
 *
 *     load PORT BODY_FILE [--connections N] [--requests N] [--for S] [--least N] [--seconds S] [--rate R]
 *                         [--ramp-ms MS] [--events N] [--path PATH] [--header "Name: value"] [--hold] [--good-ms MS]
 *
 * --for S starts no request after S seconds, but --least N in any case, and waits for the open ones; --seconds S gives
 * up on those, too.
 * One thread, one epoll. --events N says that the answers are streams of exactly N content events that end with [DONE];
 * without it they are unary JSON with a finish_reason. --rate counts latency from the moment a request was due, so a
 * router that falls behind cannot hide it; --good-ms counts the good answers that came within so long. --hold keeps
 * every stream open until a signal ends the program.
 * Prints one JSON object: good and bad answers by cause, latencies and delays of single events in microseconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
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
#define STATUSES 600
#define ROOM 16384

typedef unsigned long long nanoseconds;

enum frame { SIZE_LINE, DATA, TRAILER };

struct connection {
    int fd, busy, fresh;
    char *request, *head, *text; /* what is sent; head being read; payload not yet looked at */
    size_t request_size, sent, head_size, text_size, text_room;
    int status, chunked, must_close, done_seen, finish_seen;
    long length, remaining; /* of a sized body; of the chunk being read */
    enum frame frame;
    char line[64];
    size_t line_size;
    long events;
    nanoseconds began, first;
};

static int poller, port, connections = 1, expected_events = -1, hold;
static double good_ms = 1e12;
static long requests = 1, least, started, finished;
static double seconds = 60, start_seconds = 1e9, rate;
static nanoseconds start_limit;
static long ramp_ms;
static const char *path = "/v1/chat/completions", *header = "";
static char *body;
static size_t body_size;
static struct connection *all;

static long good, bad_status, bad_end, bad_events, cut, reset, refused, opened, late, seen_events;
static long statuses[STATUSES];
static double *latencies, *firsts, *delays, *refusals;
static long latency_count, refusal_count, in_time, delay_count, delay_room;

static nanoseconds now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (nanoseconds)t.tv_sec * 1000000000ULL + (nanoseconds)t.tv_nsec;
}

static void *grown(void *data, size_t size) {
    void *more = realloc(data, size);
    if (!more) {
        perror("load: memory");
        exit(1);
    }
    return more;
}

static void watch(struct connection *c, int how, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(poller, how, c->fd, &event);
}

static void write_request(struct connection *c) {
    while (c->sent < c->request_size) {
        ssize_t written = write(c->fd, c->request + c->sent, c->request_size - c->sent);
        if (written < 0) {
            if (errno == EAGAIN || errno == ENOTCONN) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
        c->sent += (size_t)written;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void open_connection(struct connection *c) {
    int on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((unsigned short)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        perror("load: socket");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)!connect(c->fd, (void *)&address, sizeof address);
    opened++;
    c->fresh = 1;
    watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void close_connection(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static void begin(struct connection *c, nanoseconds due) {
    if (started >= requests || (started >= least && now() > start_limit)) return;
    started++;
    c->busy = 1;
    c->sent = c->head_size = c->text_size = c->line_size = 0;
    c->status = c->chunked = c->must_close = c->done_seen = c->finish_seen = 0;
    c->length = -1;
    c->remaining = 0;
    c->frame = SIZE_LINE;
    c->events = 0;
    c->began = due ? due : now();
    c->first = 0;
    if (c->fd < 0)
        open_connection(c);
    else
        write_request(c);
}

static void next(struct connection *c) {
    finished++;
    c->busy = 0;
    if (rate <= 0) begin(c, 0);
}

static void fail(struct connection *c, long *cause) {
    (*cause)++;
    close_connection(c);
    next(c);
}

/* An answer is over by its framing: judge what was in it. */
static void judge(struct connection *c) {
    nanoseconds at = now();
    if (c->status < STATUSES) statuses[c->status]++;
    if (c->status != 200)
        bad_status++;
    else if (expected_events >= 0 && !c->done_seen)
        bad_end++;
    else if (expected_events >= 0 && c->events != expected_events)
        bad_events++;
    else if (expected_events < 0 && !c->finish_seen)
        bad_end++;
    else {
        good++;
        in_time += (double)(at - c->began) / 1e6 <= good_ms;
    }
    if (c->status != 200) {
        refusals[refusal_count++] = (double)(at - c->began) / 1e3;
        if (c->must_close) close_connection(c);
        next(c);
        return;
    }
    latencies[latency_count] = (double)(at - c->began) / 1e3;
    firsts[latency_count++] = (double)((c->first ? c->first : at) - c->began) / 1e3;
    if (c->must_close) close_connection(c);
    next(c);
}

static void see_event(struct connection *c, const char *event, size_t size, nanoseconds at) {
    if (!strncmp(event, "data: [DONE]", 12)) {
        c->done_seen = 1;
        return;
    }
    const char *mark = memchr(event, '@', size);
    if (!mark) return;
    nanoseconds sent = strtoull(mark + 1, NULL, 10);
    c->events++;
    seen_events++;
    if (!c->first) c->first = at;
    if (delay_count == delay_room) {
        delay_room = delay_room ? delay_room * 2 : 1 << 16;
        delays = grown(delays, (size_t)delay_room * sizeof *delays);
    }
    delays[delay_count++] = at > sent ? (double)(at - sent) / 1e3 : 0;
}

/* Look at the payload that has arrived, and keep only what is not whole yet. */
static void look(struct connection *c) {
    nanoseconds at = now();
    char *from = c->text, *end = c->text + c->text_size, *stop;
    if (!c->text_size) return;
    if (expected_events < 0) {
        c->text[c->text_size] = 0;
        if (strstr(c->text, "\"finish_reason\":\"")) c->finish_seen = 1;
        return;
    }
    while ((stop = memmem(from, (size_t)(end - from), "\n\n", 2))) {
        *stop = 0;
        see_event(c, from, (size_t)(stop - from), at);
        from = stop + 2;
    }
    c->text_size = (size_t)(end - from);
    memmove(c->text, from, c->text_size);
}

static void take(struct connection *c, const char *data, size_t size) {
    if (c->text_size + size + 1 > c->text_room) {
        c->text_room = (c->text_size + size) * 2 + 1024;
        c->text = grown(c->text, c->text_room);
    }
    memcpy(c->text + c->text_size, data, size);
    c->text_size += size;
}

/* Read head fields; returns the bytes used, or 0 while the head is not whole. */
static size_t read_head(struct connection *c, const char *data, size_t size) {
    size_t before = c->head_size, room = ROOM - 1 - before, copied = size < room ? size : room;
    memcpy(c->head + before, data, copied);
    c->head_size += copied;
    c->head[c->head_size] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) return 0;
    size_t used = (size_t)(end + 4 - c->head) - before;
    c->status = atoi(c->head + 9);
    for (char *line = c->head; (line = strstr(line, "\r\n")) && line < end;) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15)) c->length = atol(line + 15);
        if (!strncasecmp(line, "transfer-encoding: chunked", 26)) c->chunked = 1;
        if (!strncasecmp(line, "connection: close", 17)) c->must_close = 1;
    }
    return used;
}

/* Take a chunked body apart; true once the last chunk was read. */
static int read_chunks(struct connection *c, const char *data, size_t size) {
    const char *end = data + size;
    while (data < end) {
        if (c->frame == DATA) {
            size_t some = (size_t)(end - data) < (size_t)c->remaining ? (size_t)(end - data) : (size_t)c->remaining;
            take(c, data, some);
            data += some;
            c->remaining -= (long)some;
            if (!c->remaining) c->frame = TRAILER;
            continue;
        }
        char byte = *data++;
        if (byte != '\n') {
            if (c->line_size < sizeof c->line - 1) c->line[c->line_size++] = byte;
            continue;
        }
        c->line[c->line_size] = 0;
        int blank = c->line_size == 0 || (c->line_size == 1 && c->line[0] == '\r');
        c->line_size = 0;
        if (c->frame == TRAILER) {
            if (c->remaining < 0 && blank) return 1;
            if (c->remaining == 0) c->frame = SIZE_LINE;
            continue;
        }
        c->remaining = strtol(c->line, NULL, 16);
        c->frame = c->remaining ? DATA : TRAILER;
        if (!c->remaining) c->remaining = -1;
    }
    return 0;
}

static void ended_early(struct connection *c) {
    if (!c->busy)
        close_connection(c);
    else if (c->status && c->length < 0 && !c->chunked) { /* framed by the end of the connection */
        c->must_close = 1;
        look(c);
        judge(c);
    } else
        fail(c, c->status ? &cut : &reset);
}

static void read_answer(struct connection *c) {
    static char data[262144];
    for (;;) {
        ssize_t got = read(c->fd, data, sizeof data);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            ended_early(c);
            return;
        }
        size_t used = 0;
        int over = 0;
        if (!c->status) {
            used = read_head(c, data, (size_t)got);
            if (!c->status) continue;
        }
        if (c->chunked)
            over = read_chunks(c, data + used, (size_t)got - used);
        else {
            take(c, data + used, (size_t)got - used);
            c->remaining += got - (ssize_t)used;
            over = c->length >= 0 && c->remaining >= c->length;
        }
        look(c);
        if (over) {
            judge(c);
            return;
        }
        if ((size_t)got < sizeof data) return;
    }
}

static void serve(const struct epoll_event *event) {
    struct connection *c = event->data.ptr;
    if (c->fd < 0) return;
    if (event->events & EPOLLOUT) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            fail(c, &refused);
            return;
        }
        if (c->busy) write_request(c);
    }
    if (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR) && c->fd >= 0) read_answer(c);
}

/* Start what is due by the rate; a request without a free connection waits, and its latency counts from its time. */
static void start_due(nanoseconds zero) {
    static int turn;
    while (started < requests) {
        nanoseconds due = zero + (nanoseconds)((double)started * 1e9 / rate);
        if (due > now()) return;
        int tried = 0;
        while (tried < connections && all[(turn + tried) % connections].busy) tried++;
        if (tried == connections) {
            late++;
            return;
        }
        turn = (turn + tried) % connections;
        begin(&all[turn], due);
        turn = (turn + 1) % connections;
    }
}

static int order(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double quantile(const double *sorted, long count, double share) {
    return count ? sorted[(long)((double)(count - 1) * share)] : 0;
}

static void report(double wall, int timed_out) {
    qsort(latencies, (size_t)latency_count, sizeof *latencies, order);
    qsort(firsts, (size_t)latency_count, sizeof *firsts, order);
    qsort(refusals, (size_t)refusal_count, sizeof *refusals, order);
    qsort(delays, (size_t)delay_count, sizeof *delays, order);
    printf("{\"good\":%ld,\"finished\":%ld,\"timedOut\":%d,\"wall\":%.4f,\"badStatus\":%ld,\"badEnd\":%ld,"
           "\"badEvents\":%ld,\"cut\":%ld,\"reset\":%ld,\"refused\":%ld,\"connections\":%ld,\"late\":%ld,",
           good, finished, timed_out, wall, bad_status, bad_end, bad_events, cut, reset, refused, opened, late);
    printf("\"inTime\":%ld,\"refusal50\":%.1f,\"refusal99\":%.1f,", in_time,
           quantile(refusals, refusal_count, .5), quantile(refusals, refusal_count, .99));
    printf("\"events\":%ld,\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f,\"first50\":%.1f,\"first99\":%.1f,"
           "\"delay50\":%.1f,\"delay99\":%.1f,\"statuses\":{",
           seen_events, quantile(latencies, latency_count, .5), quantile(latencies, latency_count, .99),
           quantile(latencies, latency_count, 1), quantile(firsts, latency_count, .5),
           quantile(firsts, latency_count, .99), quantile(delays, delay_count, .5), quantile(delays, delay_count, .99));
    const char *comma = "";
    for (int i = 0; i < STATUSES; i++)
        if (statuses[i]) {
            printf("%s\"%d\":%ld", comma, i, statuses[i]);
            comma = ",";
        }
    printf("}}\n");
}

static void read_options(int count, char **arguments) {
    static const struct option known[] = {
        {"connections", 1, 0, 'c'}, {"requests", 1, 0, 'n'}, {"seconds", 1, 0, 't'}, {"rate", 1, 0, 'r'},
        {"for", 1, 0, 'f'},         {"least", 1, 0, 'l'},
        {"ramp-ms", 1, 0, 'm'},     {"events", 1, 0, 'e'},   {"path", 1, 0, 'p'},    {"header", 1, 0, 'h'},
        {"hold", 0, 0, 'o'},   {"good-ms", 1, 0, 'g'},        {0, 0, 0, 0}};
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) > 0;) switch (option) {
            case 'c': connections = atoi(optarg); break;
            case 'n': requests = atol(optarg); break;
            case 't': seconds = atof(optarg); break;
            case 'f': start_seconds = atof(optarg); break;
            case 'r': rate = atof(optarg); break;
            case 'l': least = atol(optarg); break;
            case 'm': ramp_ms = atol(optarg); break;
            case 'e': expected_events = atoi(optarg); break;
            case 'p': path = optarg; break;
            case 'h': header = optarg; break;
            case 'o': hold = 1; break;
            case 'g': good_ms = atof(optarg); break;
            default: exit(2);
        }
    if (count - optind != 2) {
        fprintf(stderr, "usage: load PORT BODY_FILE [options]\n");
        exit(2);
    }
    port = atoi(arguments[optind]);
    FILE *file = fopen(arguments[optind + 1], "rb");
    if (!file) {
        perror("load: body");
        exit(2);
    }
    body = grown(NULL, 1 << 20);
    body_size = fread(body, 1, 1 << 20, file);
    fclose(file);
}

/* One request's bytes serve all connections: they are never changed. */
static char *make_request(size_t *size) {
    char *request = grown(NULL, body_size + 4096);
    int head = snprintf(request, 4096,
                        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: load\r\nAccept: */*\r\n"
                        "Content-Type: application/json\r\n%s%sContent-Length: %zu\r\n\r\n",
                        path, port, header, *header ? "\r\n" : "", body_size);
    memcpy(request + head, body, body_size);
    *size = (size_t)head + body_size;
    return request;
}

static void set_up(void) {
    size_t size;
    char *request = make_request(&size);
    all = calloc((size_t)connections, sizeof *all);
    latencies = grown(NULL, (size_t)(requests + 1) * sizeof *latencies);
    firsts = grown(NULL, (size_t)(requests + 1) * sizeof *firsts);
    refusals = grown(NULL, (size_t)(requests + 1) * sizeof *refusals);
    if (!all) exit(1);
    for (int i = 0; i < connections; i++) {
        all[i].fd = -1;
        all[i].request = request;
        all[i].request_size = size;
        all[i].head = grown(NULL, ROOM);
    }
}

static void raise_file_limit(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files)) return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

int main(int count, char **arguments) {
    read_options(count, arguments);
    raise_file_limit();
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    set_up();
    nanoseconds zero = now(), limit = zero + (nanoseconds)(seconds * 1e9);
    start_limit = zero + (nanoseconds)(start_seconds * 1e9);
    int ramped = 0, timed_out = 0;
    struct epoll_event events[EVENTS];
    while (finished < requests || hold) {
        nanoseconds at = now();
        if (at > limit) {
            timed_out = 1;
            break;
        }
        if (at > start_limit && finished == started) break;
        if (rate > 0)
            start_due(zero);
        else
            while (ramped < connections && zero + (nanoseconds)(ramp_ms * ramped / connections) * 1000000ULL <= at)
                begin(&all[ramped++], 0);
        int waiting = rate > 0 || ramped < connections;
        struct timespec pause = {.tv_nsec = waiting ? 200000 : 100000000};
        int ready = epoll_pwait2(poller, events, EVENTS, &pause, NULL);
        for (int i = 0; i < ready; i++) serve(&events[i]);
    }
    report((double)(now() - zero) / 1e9, timed_out);
    return 0;
}
