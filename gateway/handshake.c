#include "gateway/handshake.h"

#include <strings.h>

static bool is_token_byte(unsigned char byte)
{
    return (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') ||
           (byte >= 'a' && byte <= 'z') || (byte && strchr("!#$%&'*+-.^_`|~", byte));
}

static struct span trim(struct span text)
{
    while (text.bytes && (text.data[0] == ' ' || text.data[0] == '\t')) {
        text.data++;
        text.bytes--;
    }
    while (text.bytes && (text.data[text.bytes - 1] == ' ' || text.data[text.bytes - 1] == '\t'))
        text.bytes--;
    return text;
}

static bool equal_ignoring_case(struct span a, struct span b)
{
    return a.bytes == b.bytes && strncasecmp(a.data, b.data, a.bytes) == 0;
}

bool handshake_list_has(struct span list, struct span token, bool is_exact)
{
    while (list.bytes) {
        const char *comma = memchr(list.data, ',', list.bytes);
        size_t bytes = comma ? (size_t)(comma - list.data) : list.bytes;
        struct span element = trim(span_of(list.data, bytes));
        if (is_exact ? span_equal(element, token) : equal_ignoring_case(element, token))
            return true;
        bytes += comma ? 1 : 0;
        list = span_of(list.data + bytes, list.bytes - bytes);
    }
    return false;
}

/* What has to be remembered between header lines. */
struct head_state {
    bool has_upgrade;
    bool connection_upgrade, connection_close, connection_keep_alive;
    unsigned host_count, key_count;
};

static bool header_apply(struct handshake *handshake, struct head_state *state, struct span name,
                         struct span value)
{
    if (equal_ignoring_case(name, SPAN_LITERAL("host"))) {
        state->host_count++;
    } else if (equal_ignoring_case(name, SPAN_LITERAL("upgrade"))) {
        state->has_upgrade |= handshake_list_has(value, SPAN_LITERAL("websocket"), false);
    } else if (equal_ignoring_case(name, SPAN_LITERAL("connection"))) {
        state->connection_upgrade |= handshake_list_has(value, SPAN_LITERAL("upgrade"), false);
        state->connection_close |= handshake_list_has(value, SPAN_LITERAL("close"), false);
        state->connection_keep_alive |=
            handshake_list_has(value, SPAN_LITERAL("keep-alive"), false);
    } else if (equal_ignoring_case(name, SPAN_LITERAL("sec-websocket-key"))) {
        state->key_count++;
        handshake->key = value;
    } else if (equal_ignoring_case(name, SPAN_LITERAL("sec-websocket-version"))) {
        handshake->has_version_13 = span_equal(value, SPAN_LITERAL("13"));
    } else if (equal_ignoring_case(name, SPAN_LITERAL("sec-websocket-protocol"))) {
        handshake->offers_authorization |=
            handshake_list_has(value, SPAN_LITERAL("Authorization"), true);
        if (!handshake->protocols.data)
            handshake->protocols = value;
    } else if (equal_ignoring_case(name, SPAN_LITERAL("origin"))) {
        if (!handshake->origin.data)
            handshake->origin = value;
    } else if (equal_ignoring_case(name, SPAN_LITERAL("content-length"))) {
        handshake->has_body |= !span_equal(value, SPAN_LITERAL("0"));
    } else if (equal_ignoring_case(name, SPAN_LITERAL("transfer-encoding"))) {
        handshake->has_body = true;
    }
    return state->host_count <= 1 && state->key_count <= 1;
}

static bool header_parse(struct handshake *handshake, struct head_state *state, struct span line)
{
    size_t name_bytes = 0;
    while (name_bytes < line.bytes && is_token_byte((unsigned char)line.data[name_bytes]))
        name_bytes++;
    if (name_bytes == 0 || name_bytes == line.bytes || line.data[name_bytes] != ':')
        return false; /* also a folded line, which starts with white space */
    struct span value = trim(span_of(line.data + name_bytes + 1, line.bytes - name_bytes - 1));
    for (size_t index = 0; index < value.bytes; index++) {
        unsigned char byte = (unsigned char)value.data[index];
        if ((byte < 0x20 && byte != '\t') || byte == 0x7f)
            return false;
    }
    return header_apply(handshake, state, span_of(line.data, name_bytes), value);
}

/* "http://host/path" is allowed as a target (RFC 9112 section 3.2.2); what counts is the path. */
static struct span target_path(struct span target)
{
    static const struct span scheme = {"http://", 7};
    if (target.bytes <= scheme.bytes || strncasecmp(target.data, scheme.data, scheme.bytes) != 0)
        return target;
    const char *slash = memchr(target.data + scheme.bytes, '/', target.bytes - scheme.bytes);
    const char *mark = memchr(target.data + scheme.bytes, '?', target.bytes - scheme.bytes);
    if (mark && (!slash || mark < slash))
        return (struct span){0}; /* a query without a path: what follows is no path */
    return slash ? span_of(slash, target.bytes - (size_t)(slash - target.data)) : SPAN_LITERAL("/");
}

static bool target_parse(struct handshake *handshake, struct span target)
{
    target = target_path(target);
    if (target.bytes == 0 || target.data[0] != '/')
        return false;
    for (size_t index = 0; index < target.bytes; index++) {
        unsigned char byte = (unsigned char)target.data[index];
        if (byte <= 0x20 || byte == 0x7f)
            return false;
    }
    const char *mark = memchr(target.data, '?', target.bytes);
    size_t path_bytes = mark ? (size_t)(mark - target.data) : target.bytes;
    handshake->path = span_of(target.data, path_bytes);
    if (mark)
        handshake->query = span_of(mark + 1, target.bytes - path_bytes - 1);
    return true;
}

static bool request_line_parse(struct handshake *handshake, struct span line)
{
    size_t method_bytes = 0;
    while (method_bytes < line.bytes && is_token_byte((unsigned char)line.data[method_bytes]))
        method_bytes++;
    if (method_bytes == 0 || method_bytes == line.bytes || line.data[method_bytes] != ' ')
        return false;
    struct span method = span_of(line.data, method_bytes);
    handshake->method = span_equal(method, SPAN_LITERAL("GET"))    ? HANDSHAKE_GET
                        : span_equal(method, SPAN_LITERAL("HEAD")) ? HANDSHAKE_HEAD
                                                                   : HANDSHAKE_OTHER;
    struct span rest = span_of(line.data + method_bytes + 1, line.bytes - method_bytes - 1);
    enum { VERSION_BYTES = 9 }; /* " HTTP/1.1" */
    if (rest.bytes <= VERSION_BYTES)
        return false;
    const char *version = rest.data + rest.bytes - VERSION_BYTES;
    handshake->is_http_1_0 = memcmp(version, " HTTP/1.0", VERSION_BYTES) == 0;
    if (!handshake->is_http_1_0 && memcmp(version, " HTTP/1.1", VERSION_BYTES) != 0)
        return false;
    rest.bytes -= VERSION_BYTES;
    /* "*" belongs to OPTIONS, which is refused by its method. */
    if (handshake->method == HANDSHAKE_OTHER) {
        handshake->path = rest;
        return true;
    }
    return target_parse(handshake, rest);
}

enum weir_status handshake_parse(struct span bytes, struct handshake *handshake)
{
    memset(handshake, 0, sizeof(*handshake));
    size_t looked_at = bytes.bytes < HANDSHAKE_BYTES_MAX ? bytes.bytes : HANDSHAKE_BYTES_MAX;
    const char *end = looked_at ? memmem(bytes.data, looked_at, "\r\n\r\n", 4) : NULL;
    if (!end)
        return bytes.bytes >= HANDSHAKE_BYTES_MAX ? WEIR_TOO_LARGE : WEIR_AGAIN;
    handshake->head_bytes = (size_t)(end - bytes.data) + 4;
    /* Every line up to `end + 2` ends with CRLF. */
    const char *line = bytes.data;
    struct head_state state = {0};
    for (bool is_first = true; line < end + 2; is_first = false) {
        const char *line_end = memmem(line, (size_t)(end + 2 - line), "\r\n", 2);
        struct span text = span_of(line, (size_t)(line_end - line));
        bool is_good =
            is_first ? request_line_parse(handshake, text) : header_parse(handshake, &state, text);
        if (!is_good)
            return WEIR_INVALID;
        line = line_end + 2;
        if (is_first)
            handshake->headers = span_of(line, (size_t)(end + 2 - line));
    }
    handshake->has_host = state.host_count == 1;
    handshake->wants_upgrade = state.has_upgrade && state.connection_upgrade;
    handshake->keeps_alive =
        !state.connection_close && (!handshake->is_http_1_0 || state.connection_keep_alive);
    return WEIR_OK;
}

static bool is_key(struct span key)
{
    if (key.bytes != HANDSHAKE_KEY_BYTES)
        return false;
    for (size_t index = 0; index < HANDSHAKE_KEY_BYTES - 2; index++) {
        unsigned char byte = (unsigned char)key.data[index];
        bool is_base64 = (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') ||
                         (byte >= 'a' && byte <= 'z') || byte == '+' || byte == '/';
        if (!is_base64)
            return false;
    }
    return memcmp(key.data + HANDSHAKE_KEY_BYTES - 2, "==", 2) == 0;
}

bool handshake_is_valid_upgrade(const struct handshake *handshake)
{
    return handshake->method == HANDSHAKE_GET && !handshake->is_http_1_0 && handshake->has_host &&
           handshake->has_version_13 && is_key(handshake->key);
}
