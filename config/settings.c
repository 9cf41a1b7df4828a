#include "config/settings.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "config/settings_value.h"

enum settings_kind {
    SETTINGS_KIND_TEXT,
    SETTINGS_KIND_NUMBER,
    SETTINGS_KIND_BYTES,
    SETTINGS_KIND_CHOICE,
    SETTINGS_KIND_BOOL,
};

struct settings_entry {
    const char *name;
    enum settings_kind kind;
    const char *default_text; /* TEXT only */
    uint64_t default_number;  /* all other kinds */
    uint64_t minimum;
    uint64_t maximum;
    const char *unit; /* CHOICE: its words, see SETTINGS_MAP */
    const char *sentence;
    size_t offset; /* in struct settings */
};

/* A default is text for one kind and a number for the others. */
#define SETTINGS_DEFAULT_TEXT(value) .default_text = (value)
#define SETTINGS_DEFAULT_NUMBER(value) .default_number = (value)
#define SETTINGS_DEFAULT_BYTES(value) .default_number = (value)
#define SETTINGS_DEFAULT_CHOICE(value) .default_number = (value)
#define SETTINGS_DEFAULT_BOOL(value) .default_number = (value)

static const struct settings_entry settings_table[SETTINGS_KEY_COUNT] = {
#define SETTINGS_ENTRY(name_, kind_, default_, minimum_, maximum_, unit_, sentence_)               \
    {.name = #name_,                                                                               \
     .kind = SETTINGS_KIND_##kind_,                                                                \
     SETTINGS_DEFAULT_##kind_(default_),                                                           \
     .minimum = (minimum_),                                                                        \
     .maximum = (maximum_),                                                                        \
     .unit = (unit_),                                                                              \
     .sentence = (sentence_),                                                                      \
     .offset = offsetof(struct settings, name_)},
    SETTINGS_MAP(SETTINGS_ENTRY)
#undef SETTINGS_ENTRY
};

/* What settings_store_text() and settings_store_number() write, by kind. */
#define SETTINGS_BYTES_TEXT SETTINGS_TEXT_BYTES
#define SETTINGS_BYTES_NUMBER sizeof(uint64_t)
#define SETTINGS_BYTES_BYTES sizeof(uint64_t)
#define SETTINGS_BYTES_CHOICE sizeof(unsigned)
#define SETTINGS_BYTES_BOOL sizeof(bool)
#define SETTINGS_CHECK(name_, kind_, ...)                                                          \
    static_assert(sizeof((struct settings *)0)->name_ == SETTINGS_BYTES_##kind_,                   \
                  "`" #name_ "` must have the size of its kind");
SETTINGS_MAP(SETTINGS_CHECK)
#undef SETTINGS_CHECK

/* Word `index` of a list like "auto, uring, plain"; empty behind the last one. */
static struct span settings_word_at(const char *words, size_t index)
{
    for (; index > 0 && *words != '\0'; index--) {
        words += strcspn(words, ",");
        words += strspn(words, ", ");
    }
    return span_of(words, strcspn(words, ","));
}

/* ---- storing by table entry ---- */

static void settings_store_text(struct settings *settings, const struct settings_entry *entry,
                                const char *text)
{
    char *field = (char *)settings + entry->offset;
    size_t bytes = strlen(text) + 1;
    weir_assert(bytes <= SETTINGS_TEXT_BYTES);
    memcpy(field, text, bytes);
}

static void settings_store_number(struct settings *settings, const struct settings_entry *entry,
                                  uint64_t number)
{
    char *field = (char *)settings + entry->offset;
    switch (entry->kind) {
    case SETTINGS_KIND_NUMBER:
    case SETTINGS_KIND_BYTES:
        memcpy(field, &number, sizeof number);
        return;
    case SETTINGS_KIND_CHOICE: {
        unsigned choice = (unsigned)number;
        memcpy(field, &choice, sizeof choice);
        return;
    }
    case SETTINGS_KIND_BOOL: {
        bool flag = number != 0;
        memcpy(field, &flag, sizeof flag);
        return;
    }
    case SETTINGS_KIND_TEXT:
        break;
    }
    weir_assert(false);
}

void settings_init(struct settings *settings)
{
    memset(settings, 0, sizeof *settings);
    for (size_t i = 0; i < SETTINGS_KEY_COUNT; i++) {
        const struct settings_entry *entry = &settings_table[i];
        if (entry->kind == SETTINGS_KIND_TEXT)
            settings_store_text(settings, entry, entry->default_text);
        else
            settings_store_number(settings, entry, entry->default_number);
    }
}

/* ---- finding ---- */

enum settings_key settings_find(const char *name)
{
    size_t i = 0;
    while (i < SETTINGS_KEY_COUNT && strcmp(settings_table[i].name, name) != 0)
        i++;
    return (enum settings_key)i;
}

/* Levenshtein distance with one row; names longer than the row count as far away. */
static size_t settings_name_distance(const char *a, const char *b)
{
    enum { ROW = 64 };
    size_t row[ROW + 1];
    size_t a_bytes = strlen(a);
    size_t b_bytes = strlen(b);
    if (a_bytes > ROW || b_bytes > ROW)
        return SIZE_MAX;
    for (size_t j = 0; j <= b_bytes; j++)
        row[j] = j;
    for (size_t i = 1; i <= a_bytes; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_bytes; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[b_bytes];
}

const char *settings_nearest(const char *name)
{
    const char *nearest = NULL;
    size_t nearest_distance = strlen(name) / 3 + 1;
    for (size_t i = 0; i < SETTINGS_KEY_COUNT; i++) {
        size_t distance = settings_name_distance(name, settings_table[i].name);
        if (distance <= nearest_distance && (nearest == NULL || distance < nearest_distance)) {
            nearest = settings_table[i].name;
            nearest_distance = distance;
        }
    }
    return nearest;
}

/* ---- reading values ---- */

bool settings_parse_number(const char *text, uint64_t *number)
{
    if (*text == '\0')
        return false;
    uint64_t value = 0;
    for (; *text >= '0' && *text <= '9'; text++) {
        if (__builtin_mul_overflow(value, 10u, &value))
            return false;
        if (__builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
            return false;
    }
    *number = value;
    return *text == '\0';
}

/* Digits, then nothing, "B", "KiB", "MiB", "GiB" or "TiB", with or without one space. */
static bool settings_parse_bytes(const char *text, uint64_t *number)
{
    static const struct {
        const char *name;
        uint64_t factor;
    } units[] = {{"", 1},           {"B", 1},          {"KiB", 1u << 10},
                 {"MiB", 1u << 20}, {"GiB", 1u << 30}, {"TiB", UINT64_C(1) << 40}};
    char digits[24];
    size_t count = strspn(text, "0123456789");
    if (count == 0 || count >= sizeof digits)
        return false;
    memcpy(digits, text, count);
    digits[count] = '\0';
    uint64_t value;
    if (!settings_parse_number(digits, &value))
        return false;
    const char *unit = text + count;
    if (*unit == ' ' && unit[1] != '\0')
        unit++;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(unit, units[i].name) == 0)
            return !__builtin_mul_overflow(value, units[i].factor, number);
    }
    return false;
}

/* True for what YAML reads as something else than text when it stands without quotes. */
static bool settings_is_typed_scalar(const char *text)
{
    static const char *const words[] = {"",     "~",    "null",  "Null",  "NULL", "true",
                                        "True", "TRUE", "false", "False", "FALSE"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp(text, words[i]) == 0)
            return true;
    }
    char *end;
    (void)strtod(text, &end);
    return *end == '\0';
}

static void settings_format_bytes(char *out, size_t out_bytes, uint64_t number)
{
    static const char *const units[] = {"", " KiB", " MiB", " GiB", " TiB"};
    size_t unit = 0;
    while (unit < 4 && number != 0 && number % 1024 == 0) {
        number /= 1024;
        unit++;
    }
    (void)snprintf(out, out_bytes, "%" PRIu64 "%s", number, units[unit]);
}

static void settings_format_number(char *out, size_t out_bytes, const struct settings_entry *entry,
                                   uint64_t number)
{
    switch (entry->kind) {
    case SETTINGS_KIND_BYTES:
        settings_format_bytes(out, out_bytes, number);
        return;
    case SETTINGS_KIND_CHOICE: {
        struct span word = settings_word_at(entry->unit, number);
        (void)snprintf(out, out_bytes, "%.*s", (int)word.bytes, word.data);
        return;
    }
    case SETTINGS_KIND_BOOL:
        (void)snprintf(out, out_bytes, "%s", number != 0 ? "true" : "false");
        return;
    case SETTINGS_KIND_NUMBER:
    case SETTINGS_KIND_TEXT:
        break;
    }
    (void)snprintf(out, out_bytes, "%" PRIu64, number);
}

static enum weir_status settings_assign_text(struct settings *settings,
                                             const struct settings_entry *entry,
                                             const struct settings_value *value,
                                             struct weir_error *error)
{
    const char *text = value->text;
    bool is_admin = entry == &settings_table[SETTINGS_KEY_admin];
    bool is_off = is_admin && value->form == SETTINGS_FORM_PLAIN && strcmp(text, "false") == 0;
    if (value->is_typed && value->form == SETTINGS_FORM_PLAIN && !is_off &&
        settings_is_typed_scalar(text))
        return weir_fail(error, WEIR_INVALID,
                         "%s: key `%s` needs text, not `%.40s`; put it in quotes", value->place,
                         value->shown, text);
    if (strlen(text) >= SETTINGS_TEXT_BYTES)
        return weir_fail(error, WEIR_INVALID, "%s: key `%s` is longer than %d bytes; shorten it",
                         value->place, value->shown, SETTINGS_TEXT_BYTES - 1);
    settings_store_text(settings, entry, text);
    return WEIR_OK;
}

static enum weir_status settings_assign_number(struct settings *settings,
                                               const struct settings_entry *entry,
                                               const struct settings_value *value,
                                               struct weir_error *error)
{
    bool is_bytes = entry->kind == SETTINGS_KIND_BYTES;
    bool is_choice = value->form == SETTINGS_FORM_PLAIN && strcmp(value->text, "auto") == 0 &&
                     (entry == &settings_table[SETTINGS_KEY_gateways] ||
                      entry == &settings_table[SETTINGS_KEY_store_bytes]);
    uint64_t number = 0;
    bool is_number = is_choice;
    if (!is_choice && is_bytes)
        is_number = settings_parse_bytes(value->text, &number);
    else if (!is_choice && value->form == SETTINGS_FORM_PLAIN)
        is_number = settings_parse_number(value->text, &number);
    if (!is_number)
        return weir_fail(error, WEIR_INVALID,
                         "%s: key `%s` needs %s, not `%.40s`; write for example %s", value->place,
                         value->shown, is_bytes ? "a size" : "a whole number without quotes",
                         value->text, is_bytes ? "64 MiB" : "1000");
    bool is_default = number == entry->default_number;
    if (!is_default && (number < entry->minimum || number > entry->maximum)) {
        char least[32];
        char most[32];
        settings_format_number(least, sizeof least, entry, entry->minimum);
        settings_format_number(most, sizeof most, entry, entry->maximum);
        return weir_fail(error, WEIR_INVALID,
                         "%s: key `%s` is %.40s, which is out of range; use %s to %s%s%s",
                         value->place, value->shown, value->text, least, most,
                         is_bytes || *entry->unit == '\0' ? "" : " ", is_bytes ? "" : entry->unit);
    }
    settings_store_number(settings, entry, number);
    return WEIR_OK;
}

/* "auto, uring or plain" of "auto, uring, plain". */
static void settings_format_words(char *out, size_t out_bytes, const char *words)
{
    const char *last = strrchr(words, ',');
    weir_assert(last != NULL);
    (void)snprintf(out, out_bytes, "%.*s or%s", (int)(last - words), words, last + 1);
}

static enum weir_status settings_assign_choice(struct settings *settings,
                                               const struct settings_entry *entry,
                                               const struct settings_value *value,
                                               struct weir_error *error)
{
    struct span text = span_text(value->text);
    struct span word;
    for (size_t i = 0; (word = settings_word_at(entry->unit, i)).bytes != 0; i++) {
        if (span_equal(word, text)) {
            settings_store_number(settings, entry, i);
            return WEIR_OK;
        }
    }
    char words[96];
    settings_format_words(words, sizeof words, entry->unit);
    return weir_fail(error, WEIR_INVALID, "%s: key `%s` cannot be `%.40s`; use %s", value->place,
                     value->shown, value->text, words);
}

static enum weir_status settings_assign_bool(struct settings *settings,
                                             const struct settings_entry *entry,
                                             const struct settings_value *value,
                                             struct weir_error *error)
{
    bool is_true = strcmp(value->text, "true") == 0;
    if (value->form != SETTINGS_FORM_PLAIN || (!is_true && strcmp(value->text, "false") != 0))
        return weir_fail(error, WEIR_INVALID, "%s: key `%s` cannot be `%.40s`; use true or false",
                         value->place, value->shown, value->text);
    settings_store_number(settings, entry, is_true);
    return WEIR_OK;
}

enum weir_status settings_assign(struct settings *settings, enum settings_key key,
                                 const struct settings_value *value, struct weir_error *error)
{
    weir_assert(key < SETTINGS_KEY_COUNT);
    const struct settings_entry *entry = &settings_table[key];
    if (value->form == SETTINGS_FORM_NOT_SCALAR)
        return weir_fail(error, WEIR_INVALID,
                         "%s: key `%s` needs a single value; remove the list or mapping",
                         value->place, value->shown);
    enum weir_status status = WEIR_OK;
    switch (entry->kind) {
    case SETTINGS_KIND_TEXT:
        status = settings_assign_text(settings, entry, value, error);
        break;
    case SETTINGS_KIND_NUMBER:
    case SETTINGS_KIND_BYTES:
        status = settings_assign_number(settings, entry, value, error);
        break;
    case SETTINGS_KIND_CHOICE:
        status = settings_assign_choice(settings, entry, value, error);
        break;
    case SETTINGS_KIND_BOOL:
        status = settings_assign_bool(settings, entry, value, error);
        break;
    }
    if (status == WEIR_OK)
        settings->given |= UINT64_C(1) << key;
    return status;
}

enum weir_status settings_set(struct settings *settings, const char *assignment,
                              struct weir_error *error)
{
    const char *equals = strchr(assignment, '=');
    char name[64];
    if (equals == NULL || equals == assignment)
        return weir_fail(error, WEIR_INVALID, "--set %.60s: no value; write KEY=VALUE", assignment);
    size_t name_bytes = (size_t)(equals - assignment);
    enum settings_key key = SETTINGS_KEY_COUNT;
    const char *nearest = NULL;
    if (name_bytes < sizeof name) {
        memcpy(name, assignment, name_bytes);
        name[name_bytes] = '\0';
        key = settings_find(name);
        nearest = settings_nearest(name);
    }
    if (span_equal(span_of(assignment, name_bytes), SPAN_LITERAL("streams")))
        return weir_fail(error, WEIR_INVALID, "--set: `streams` can only stand in the file");
    if (span_equal(span_of(assignment, name_bytes), SPAN_LITERAL("auth_tokens")))
        return weir_fail(error, WEIR_INVALID,
                         "--set: `auth_tokens` can only stand in the file, where not everybody "
                         "reads it; write it below `weir:`");
    if (key == SETTINGS_KEY_COUNT)
        return weir_fail(error, WEIR_INVALID, "--set: key `%.*s` is not known; %s%s%s",
                         (int)(name_bytes < 60 ? name_bytes : 60), assignment,
                         nearest != NULL ? "did you mean `" : "`weir help settings` lists all",
                         nearest != NULL ? nearest : "", nearest != NULL ? "`?" : "");
    struct settings_value value = {.place = "--set",
                                   .shown = settings_table[key].name,
                                   .text = equals + 1,
                                   .form = SETTINGS_FORM_PLAIN,
                                   .is_typed = false};
    return settings_assign(settings, key, &value, error);
}

/* ---- relations and choices ---- */

static bool settings_is_address(const char *host)
{
    unsigned char address[sizeof(struct in6_addr)];
    return inet_pton(AF_INET, host, address) == 1 || inet_pton(AF_INET6, host, address) == 1;
}

/* Hosts become numeric, so that no process has to ask a name server before it can listen. */
static enum weir_status settings_check_host(char host[SETTINGS_TEXT_BYTES], const char *key,
                                            struct weir_error *error)
{
    if (strcmp(host, "localhost") == 0)
        memcpy(host, "127.0.0.1", sizeof "127.0.0.1");
    if (settings_is_address(host))
        return WEIR_OK;
    return weir_fail(
        error, WEIR_INVALID,
        "setting `%s` is `%.60s`, which is not an IP address; use for example 127.0.0.1, "
        "0.0.0.0 or ::",
        key, host);
}

enum weir_status settings_host_port(const char *text, char host[SETTINGS_TEXT_BYTES],
                                    uint16_t *port, struct weir_error *error)
{
    const char *colon = strrchr(text, ':');
    const char *start = text;
    const char *end = colon;
    if (colon != NULL && *text == '[' && colon > text + 1 && colon[-1] == ']') {
        start = text + 1;
        end = colon - 1;
    } else if (colon != NULL && memchr(text, ':', (size_t)(colon - text)) != NULL) {
        end = NULL; /* IPv6 without brackets: where the port starts cannot be known */
    }
    uint64_t number = 0;
    if (end == NULL || end == start || end - start >= SETTINGS_TEXT_BYTES ||
        !settings_parse_number(colon + 1, &number) || number > UINT16_MAX)
        return weir_fail(error, WEIR_INVALID,
                         "`%.60s` is not HOST:PORT; write for example 127.0.0.1:3114 or [::1]:3114",
                         text);
    memcpy(host, start, (size_t)(end - start));
    host[end - start] = '\0';
    *port = (uint16_t)number;
    return WEIR_OK;
}

static enum weir_status settings_resolve_admin(struct settings *settings, uint16_t *port,
                                               char host[SETTINGS_TEXT_BYTES],
                                               struct weir_error *error)
{
    *port = 0;
    if (*settings->admin == '\0' || strcmp(settings->admin, "false") == 0) {
        memcpy(settings->admin, "false", sizeof "false");
        return WEIR_OK;
    }
    struct weir_error cause;
    if (settings_host_port(settings->admin, host, port, &cause) != WEIR_OK)
        return weir_fail(error, WEIR_INVALID, "setting `admin`: %.180s", cause.text);
    if (settings_check_host(host, "admin", error) != WEIR_OK)
        return WEIR_INVALID;
    bool is_v6 = strchr(host, ':') != NULL;
    char joined[SETTINGS_TEXT_BYTES + 16];
    int bytes = snprintf(joined, sizeof joined, is_v6 ? "[%s]:%u" : "%s:%u", host, (unsigned)*port);
    weir_assert(bytes > 0 && bytes < SETTINGS_TEXT_BYTES); /* both parts are checked addresses */
    memcpy(settings->admin, joined, (size_t)bytes + 1);
    return WEIR_OK;
}

static bool settings_is_wildcard(const char *host)
{
    return strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
}

/* With SO_REUSEPORT two listeners of ours would share a port in silence and each get half of the
 * other's clients. */
static bool settings_ports_collide(const char *host_a, uint64_t port_a, const char *host_b,
                                   uint64_t port_b)
{
    return port_a != 0 && port_a == port_b &&
           (strcmp(host_a, host_b) == 0 || settings_is_wildcard(host_a) ||
            settings_is_wildcard(host_b));
}

static enum weir_status settings_check_ports(struct settings *settings, struct weir_error *error)
{
    char admin_host[SETTINGS_TEXT_BYTES] = "";
    uint16_t admin_port;
    if (settings_check_host(settings->stream_host, "stream_host", error) != WEIR_OK ||
        settings_check_host(settings->worker_host, "worker_host", error) != WEIR_OK ||
        settings_resolve_admin(settings, &admin_port, admin_host, error) != WEIR_OK)
        return WEIR_INVALID;
    const char *first = NULL;
    const char *second = "admin";
    uint64_t port = admin_port;
    if (settings_ports_collide(settings->stream_host, settings->stream_port, settings->worker_host,
                               settings->worker_port)) {
        first = "stream_port";
        second = "worker_port";
        port = settings->stream_port;
    } else if (settings_ports_collide(settings->stream_host, settings->stream_port, admin_host,
                                      admin_port)) {
        first = "stream_port";
    } else if (settings_ports_collide(settings->worker_host, settings->worker_port, admin_host,
                                      admin_port)) {
        first = "worker_port";
    }
    if (first == NULL)
        return WEIR_OK;
    return weir_fail(error, WEIR_INVALID,
                     "settings `%s` and `%s` both use port %" PRIu64
                     "; give one of them another port",
                     first, second, port);
}

/* The name of the setting whose port `listener` would take away, or NULL. */
static const char *settings_listener_rival(const struct settings *settings,
                                           const struct settings_listener *listener)
{
    char admin_host[SETTINGS_TEXT_BYTES] = "";
    uint16_t admin_port = 0;
    if (strcmp(settings->admin, "false") != 0 &&
        settings_host_port(settings->admin, admin_host, &admin_port, NULL) != WEIR_OK)
        return "admin";
    if (settings_ports_collide(listener->host, listener->port, settings->stream_host,
                               settings->stream_port))
        return "stream_port";
    if (settings_ports_collide(listener->host, listener->port, settings->worker_host,
                               settings->worker_port))
        return "worker_port";
    return settings_ports_collide(listener->host, listener->port, admin_host, admin_port) ? "admin"
                                                                                          : NULL;
}

/* Worker listeners are checked against all ports, and one handshake timeout, the longest, serves
 * every port. */
static enum weir_status settings_check_listeners(struct settings *settings,
                                                 struct weir_error *error)
{
    for (uint32_t i = 0; i < settings->listener_count; i++) {
        struct settings_listener *listener = &settings->listeners[i];
        if (settings_check_host(listener->host, "host", error) != WEIR_OK)
            return WEIR_INVALID;
        const char *rival = settings_listener_rival(settings, listener);
        if (rival != NULL)
            return weir_fail(error, WEIR_INVALID,
                             "the worker listener on line %u and the setting `%s` both use port "
                             "%" PRIu64 "; give one of them another port",
                             (unsigned)listener->line, rival, listener->port);
        for (uint32_t j = 0; j < i; j++) {
            if (settings_ports_collide(listener->host, listener->port, settings->listeners[j].host,
                                       settings->listeners[j].port))
                return weir_fail(error, WEIR_INVALID,
                                 "the worker listeners on lines %u and %u both use port %" PRIu64
                                 "; give one of them another port",
                                 (unsigned)settings->listeners[j].line, (unsigned)listener->line,
                                 listener->port);
        }
        if (listener->handshake_timeout_ms > settings->handshake_timeout_ms)
            settings->handshake_timeout_ms = listener->handshake_timeout_ms;
    }
    return WEIR_OK;
}

static uint64_t settings_core_count(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
    if (count <= 0)
        count = get_nprocs();
    return count < 1 ? 1 : count > (int)READERS_MAX ? READERS_MAX : (uint64_t)count;
}

/* The smaller of the machine's memory and the control group's limit. */
static uint64_t settings_memory_bytes(void)
{
    struct sysinfo info;
    uint64_t bytes = STORE_BYTES_DEFAULT * 2;
    if (sysinfo(&info) == 0)
        bytes = (uint64_t)info.totalram * info.mem_unit;
    FILE *file = fopen("/sys/fs/cgroup/memory.max", "re");
    if (file == NULL)
        return bytes;
    char text[32] = "";
    uint64_t limit;
    if (fgets(text, sizeof text, file) != NULL) {
        text[strcspn(text, "\n")] = '\0';
        if (settings_parse_number(text, &limit) && limit < bytes)
            bytes = limit;
    }
    (void)fclose(file);
    return bytes;
}

static uint64_t settings_choose_store_bytes(void)
{
    uint64_t half = settings_memory_bytes() / 2;
    half -= half % (1024 * 1024);
    if (half > STORE_BYTES_DEFAULT)
        return STORE_BYTES_DEFAULT;
    return half < STORE_BYTES_MIN ? STORE_BYTES_MIN : half;
}

static enum weir_status settings_resolve_run_dir(struct settings *settings,
                                                 struct weir_error *error)
{
    if (*settings->run_dir == '\0') {
        const char *runtime = getenv("XDG_RUNTIME_DIR");
        bool is_usable = runtime != NULL && *runtime == '/' &&
                         strlen(runtime) + sizeof "/weir" <= SETTINGS_RUN_DIR_BYTES_MAX;
        if (is_usable)
            (void)snprintf(settings->run_dir, sizeof settings->run_dir, "%s/weir", runtime);
        else
            (void)snprintf(settings->run_dir, sizeof settings->run_dir, "/tmp/weir-%u",
                           (unsigned)geteuid());
    }
    if (strlen(settings->run_dir) > SETTINGS_RUN_DIR_BYTES_MAX)
        return weir_fail(error, WEIR_INVALID,
                         "setting `run_dir` is longer than %d bytes, which leaves no room for a "
                         "socket's name; use a shorter path",
                         SETTINGS_RUN_DIR_BYTES_MAX);
    return WEIR_OK;
}

/* One record of the largest value must fit its share of the ring. A limit nobody asked for follows
 * the ring. */
static enum weir_status settings_resolve_value_bytes(struct settings *settings,
                                                     struct weir_error *error)
{
    uint64_t fits = settings->ring_bytes / RING_RECORD_SHARE - ENVELOPE_OVERHEAD_BYTES_MAX - 4096;
    if (settings->value_bytes_max <= fits)
        return WEIR_OK;
    if ((settings->given & UINT64_C(1) << SETTINGS_KEY_value_bytes_max) == 0) {
        settings->value_bytes_max = fits;
        return WEIR_OK;
    }
    return weir_fail(error, WEIR_INVALID,
                     "setting `value_bytes_max` of %" PRIu64 " does not fit a ring of %" PRIu64
                     " bytes; use at most %" PRIu64 " or raise `ring_bytes`",
                     settings->value_bytes_max, settings->ring_bytes, fits);
}
static_assert(RING_BYTES_MIN / RING_RECORD_SHARE > ENVELOPE_OVERHEAD_BYTES_MAX + 4096 + 1024,
              "the smallest ring must take the smallest value_bytes_max");

/* After settings_resolve_value_bytes(), whose result a segment must have room for. */
static enum weir_status settings_resolve_durability(struct settings *settings,
                                                    struct weir_error *error)
{
    bool has_interval = (settings->given & UINT64_C(1) << SETTINGS_KEY_save_interval_ms) != 0;
    enum settings_durability durability = settings->durability;
    if (*settings->data_dir == '\0') {
        if (durability == SETTINGS_DURABILITY_WRITTEN || durability == SETTINGS_DURABILITY_SYNCED)
            return weir_fail(error, WEIR_INVALID,
                             "setting `durability` is %s, which needs a directory; set `data_dir` "
                             "(or store_method: file_based of adapter kv), or remove `durability`",
                             durability == SETTINGS_DURABILITY_WRITTEN ? "written" : "synced");
        durability = SETTINGS_DURABILITY_MEMORY;
    } else if (durability == SETTINGS_DURABILITY_AUTO) {
        durability = has_interval ? SETTINGS_DURABILITY_WRITTEN : SETTINGS_DURABILITY_SYNCED;
    }
    if (strlen(settings->data_dir) > SETTINGS_DATA_DIR_BYTES_MAX)
        return weir_fail(error, WEIR_INVALID,
                         "setting `data_dir` is longer than %d bytes, which leaves no room for the "
                         "names of files in it; use a shorter path",
                         SETTINGS_DATA_DIR_BYTES_MAX);
    uint64_t least = settings->value_bytes_max + SETTINGS_SEGMENT_ROOM_BYTES;
    if (settings->log_segment_bytes < least)
        return weir_fail(error, WEIR_INVALID,
                         "setting `log_segment_bytes` of %" PRIu64
                         " cannot hold the largest value; use at least %" PRIu64
                         " or lower `value_bytes_max`",
                         settings->log_segment_bytes, least);
    settings->durability = durability;
    return WEIR_OK;
}

enum weir_status settings_resolve(struct settings *settings, struct weir_error *error)
{
    enum weir_status status = settings_check_ports(settings, error);
    if (status == WEIR_OK)
        status = settings_check_listeners(settings, error);
    if (status != WEIR_OK)
        return status;
    if (settings->gateways == 0)
        settings->gateways = settings_core_count();
    if (settings->store_bytes == 0)
        settings->store_bytes = settings_choose_store_bytes();
    status = settings_resolve_run_dir(settings, error);
    if (status != WEIR_OK)
        return status;
    status = settings_resolve_value_bytes(settings, error);
    if (status == WEIR_OK)
        status = settings_resolve_durability(settings, error);
    if (status != WEIR_OK)
        return status;
    if ((*settings->tls_certificate == '\0') != (*settings->tls_key == '\0'))
        return weir_fail(error, WEIR_INVALID,
                         "setting `%s` is missing; TLS needs both `tls_certificate` and `tls_key`",
                         *settings->tls_key == '\0' ? "tls_key" : "tls_certificate");
    if (settings->ping_interval_ms != 0 && settings->idle_timeout_ms != 0 &&
        settings->idle_timeout_ms <= settings->ping_interval_ms)
        return weir_fail(error, WEIR_INVALID,
                         "setting `idle_timeout_ms` (%" PRIu64
                         ") closes quiet clients before a ping (%" PRIu64
                         ") can show they live; raise it above `ping_interval_ms`",
                         settings->idle_timeout_ms, settings->ping_interval_ms);
    return WEIR_OK;
}

/* ---- printing the table ---- */

static void settings_format_default(char *out, size_t out_bytes, const struct settings_entry *entry)
{
    if (entry->kind == SETTINGS_KIND_TEXT)
        (void)snprintf(out, out_bytes, "%s",
                       *entry->default_text != '\0' ? entry->default_text : "\"\"");
    else
        settings_format_number(out, out_bytes, entry, entry->default_number);
}

static void settings_format_range(char *out, size_t out_bytes, const struct settings_entry *entry)
{
    char least[32];
    char most[32];
    switch (entry->kind) {
    case SETTINGS_KIND_TEXT:
        (void)snprintf(out, out_bytes, "text");
        return;
    case SETTINGS_KIND_CHOICE:
        (void)snprintf(out, out_bytes, "%s", entry->unit);
        return;
    case SETTINGS_KIND_BOOL:
        (void)snprintf(out, out_bytes, "true, false");
        return;
    case SETTINGS_KIND_NUMBER:
    case SETTINGS_KIND_BYTES:
        break;
    }
    settings_format_number(least, sizeof least, entry, entry->minimum);
    settings_format_number(most, sizeof most, entry, entry->maximum);
    bool has_unit = entry->kind == SETTINGS_KIND_NUMBER && *entry->unit != '\0';
    (void)snprintf(out, out_bytes, "%s to %s%s%s", least, most, has_unit ? " " : "",
                   has_unit ? entry->unit : "");
}

void settings_print_help(FILE *out)
{
    for (size_t i = 0; i < SETTINGS_KEY_COUNT; i++) {
        const struct settings_entry *entry = &settings_table[i];
        char value[SETTINGS_TEXT_BYTES];
        char range[96];
        settings_format_default(value, sizeof value, entry);
        settings_format_range(range, sizeof range, entry);
        (void)fprintf(out, "  %-24s %s\n  %-24s default %s (%s)\n", entry->name, entry->sentence,
                      "", value, range);
    }
}

void settings_print_markdown(FILE *out)
{
    (void)fprintf(out, "| key | default | accepts | what it does |\n|---|---|---|---|\n");
    for (size_t i = 0; i < SETTINGS_KEY_COUNT; i++) {
        const struct settings_entry *entry = &settings_table[i];
        char value[SETTINGS_TEXT_BYTES];
        char range[96];
        settings_format_default(value, sizeof value, entry);
        settings_format_range(range, sizeof range, entry);
        (void)fprintf(out, "| `%s` | `%s` | %s | %s |\n", entry->name, value, range,
                      entry->sentence);
    }
}
