/* Fuzz target of gateway/auth.h, gateway/stream_path.h and gateway/wish.h: the input is a request's
 * head. What auth_function would be told is JSON of the documented shape, whatever the client
 * sent; tokens, decoded paths and what a query says of positions stay inside their bounds. */
#include <stdio.h>
#include <stdlib.h>

#include "gateway/auth.h"
#include "gateway/event_stream.h"
#include "gateway/handshake.h"
#include "gateway/stream_path.h"
#include "gateway/wish.h"
#include "shm/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool holds, const char *what)
{
    if (holds)
        return;
    (void)fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void headers_check(struct json_value headers)
{
    struct json_value key, value;
    size_t cursor = 0;
    require(headers.kind == JSON_OBJECT, "headers are an object");
    while (json_next(headers, &cursor, &key, &value) == WEIR_OK) {
        require(value.kind == JSON_STRING, "a header is a string");
        for (size_t i = 0; i < key.text.bytes; i++)
            require(key.text.data[i] < 'A' || key.text.data[i] > 'Z', "a name in lower case");
        for (size_t i = 0; i < value.text.bytes; i++)
            require(value.text.data[i] >= ' ' && value.text.data[i] <= '~', "visible ASCII");
    }
}

static void query_check(struct json_value query)
{
    struct json_value key, values, value;
    size_t cursor = 0;
    require(query.kind == JSON_OBJECT, "the query is an object");
    while (json_next(query, &cursor, &key, &values) == WEIR_OK) {
        size_t inner = 0, count = 0;
        require(key.text.bytes > 2, "an empty key");
        require(values.kind == JSON_ARRAY, "values are a list");
        while (json_next(values, &inner, NULL, &value) == WEIR_OK) {
            require(value.kind == JSON_STRING, "a value is a string");
            count++;
        }
        require(count > 0, "a key without value");
    }
}

static void input_check(const struct ws_request *request)
{
    static const char *const names[] = {"headers", "path", "query_params", "addr"};
    struct json_value values[4];
    struct buffer out;
    buffer_init(&out, 1 << 20);
    enum weir_status status = auth_input_append(&out, request);
    require(status != WEIR_FULL && status != WEIR_NO_MEMORY, "the input is bounded");
    if (status == WEIR_OK) {
        require(json_scan_object(buffer_span(&out), 8, names, 4, values, NULL) == WEIR_OK,
                "the input is JSON");
        headers_check(values[0]);
        require(values[1].kind == JSON_STRING, "the path is a string");
        query_check(values[2]);
        require(values[3].kind == JSON_STRING, "the address is a string");
    }
    buffer_fini(&out);
}

/* A scratch of exactly the size asked for, so that AddressSanitizer sees what is written beyond. */
static void tokens_check(const struct ws_request *request)
{
    char *scratch = malloc(request->query.bytes + 1);
    require(scratch != NULL, "no memory");
    for (enum auth_place place = AUTH_HEADER; place < AUTH_PLACES; place++) {
        struct span token = auth_token(request, place, scratch);
        uint8_t sum = 0;
        for (size_t i = 0; i < token.bytes; i++)
            sum = (uint8_t)(sum + (uint8_t)token.data[i]);
        require(token.bytes <= HANDSHAKE_BYTES_MAX || sum == 0, "a token longer than the head");
    }
    free(scratch);
}

static void path_check(struct span path)
{
    char *decoded = malloc(path.bytes + 1);
    size_t bytes = 0;
    require(decoded != NULL, "no memory");
    if (stream_path_decode(decoded, path, &bytes)) {
        require(bytes <= path.bytes, "a path grows");
        require(json_is_utf8(span_of(decoded, bytes)), "a path that is not UTF-8");
    }
    free(decoded);
}

/* Likewise a scratch of exactly the size. A position that was taken is said again in the same words. */
static void wish_check(struct span query)
{
    struct subscription_wish wish = {0};
    struct wish_words words;
    struct span item = {0};
    char *scratch = malloc(query.bytes);
    if (scratch != NULL && wish_words_of_query(&words, &item, query, scratch) == NULL) {
        require(item.bytes == 0 || json_is_utf8(item), "an item that is not UTF-8");
        require(wish_take(&wish, &words) != NULL || wish.has_cursor == (words.epoch.data != NULL),
                "a position out of nowhere");
        require(wish.policy <= SLOW_DISCONNECT, "a policy that is none");
    }
    free(scratch);
}

static void event_id_check(struct span text)
{
    struct cursor cursor, again;
    char id[64];
    if (!event_stream_parse_id(text, &cursor))
        return;
    int bytes = snprintf(id, sizeof id, "%llu-%llu", (unsigned long long)cursor.epoch,
                         (unsigned long long)cursor.seq);
    require(event_stream_parse_id(span_of(id, (size_t)bytes), &again), "an id that is none");
    require(again.epoch == cursor.epoch && again.seq == cursor.seq, "an id that changes");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct handshake handshake;
    if (handshake_parse(span_of(data, bytes), &handshake) != WEIR_OK)
        return 0;
    const struct ws_request request = {
        .path = handshake.path,
        .query = handshake.query,
        .headers = handshake.headers,
        .protocols = handshake.protocols,
        .peer = "203.0.113.9:50123",
    };
    input_check(&request);
    tokens_check(&request);
    path_check(handshake.path);
    path_check(handshake.query);
    wish_check(handshake.query);
    event_id_check(handshake.query);
    return 0;
}
