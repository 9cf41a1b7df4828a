/* How a value is held while operations work on it:
 *
 *   node   a value. Untouched it is only its text, somewhere in the old value or the list of
 *          operations. An object that a path walks through gets an `object`; an array pushed to or a
 *          string added to gets `pieces`, which are printed behind what its text holds. So a push
 *          costs the same whatever the array's length.
 *   object the text, and the members that a path has named, each with its place in the text. When
 *          more than a few have been named it lists all of its members instead, found through an
 *          index by the hash of the decoded key once there are many.
 *
 * Everything lives in a pool that is emptied at once. Text is printed at the very end. */
#include "adapters/update.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "shm/hash.h"

enum {
    POOL_BLOCK_BYTES_MIN = 16 * 1024,
    POOL_BLOCK_BYTES_MAX = 512 * 1024, /* of a block that is kept from call to call, too */
    OUT_KEPT_BYTES = 1024 * 1024,
    SEARCHES_MAX = 2,        /* of an object's text; then it lists all of its members */
    LINEAR_MEMBERS_MAX = 16, /* an object that lists more gets an index */
};

/* ---- memory ---- */

struct pool_block {
    struct pool_block *next;
    size_t bytes; /* of data */
    size_t used_bytes;
    _Alignas(16) char data[];
};

struct pool {
    struct pool_block *newest;
    uint64_t total_bytes;
    uint64_t limit_bytes;
    enum weir_status failure; /* of pool_take(): NO_MEMORY or TOO_LARGE */
};

static size_t pool_next_bytes(const struct pool *pool, size_t need_bytes)
{
    size_t bytes = pool->newest == NULL ? POOL_BLOCK_BYTES_MIN : 2 * pool->newest->bytes;
    if (bytes > POOL_BLOCK_BYTES_MAX)
        bytes = POOL_BLOCK_BYTES_MAX;
    return bytes > need_bytes ? bytes : need_bytes;
}

static __attribute__((noinline)) void *pool_take_block(struct pool *pool, size_t bytes)
{
    size_t block_bytes = pool_next_bytes(pool, bytes);
    if (block_bytes > pool->limit_bytes || pool->total_bytes > pool->limit_bytes - block_bytes) {
        pool->failure = WEIR_TOO_LARGE;
        return NULL;
    }
    struct pool_block *block = malloc(sizeof *block + block_bytes);
    if (block == NULL) {
        pool->failure = WEIR_NO_MEMORY;
        return NULL;
    }
    *block = (struct pool_block){pool->newest, block_bytes, bytes};
    pool->newest = block;
    pool->total_bytes += block_bytes;
    return block->data;
}

/* `bytes` of memory, aligned for any struct; NULL and pool->failure when there are none. */
static void *pool_take(struct pool *pool, size_t bytes)
{
    struct pool_block *block = pool->newest;
    bytes = (bytes + 15) & ~(size_t)15;
    if (block == NULL || block->bytes - block->used_bytes < bytes)
        return pool_take_block(pool, bytes);
    void *memory = block->data + block->used_bytes;
    block->used_bytes += bytes;
    return memory;
}

/* Why pool_take() has just returned NULL. */
static enum weir_status pool_refusal(const struct pool *pool)
{
    return pool->failure == WEIR_TOO_LARGE ? WEIR_TOO_LARGE : WEIR_NO_MEMORY;
}

/* Forget everything in the pool; one block of ordinary size stays. */
static void pool_empty(struct pool *pool)
{
    struct pool_block *kept = NULL;
    struct pool_block *next;
    for (struct pool_block *block = pool->newest; block != NULL; block = next) {
        next = block->next;
        if (kept == NULL && block->bytes <= POOL_BLOCK_BYTES_MAX)
            kept = block; /* the newest is the largest of these */
        else
            free(block);
    }
    pool->newest = kept;
    pool->total_bytes = 0;
    if (kept != NULL) {
        kept->next = NULL;
        kept->used_bytes = 0;
        pool->total_bytes = kept->bytes;
    }
}

static void pool_fini(struct pool *pool)
{
    pool_empty(pool);
    free(pool->newest);
    pool->newest = NULL;
}

/* ---- values ---- */

struct piece {
    struct piece *next;
    struct span text; /* an array's element; or of a string, without its quotes */
};

struct pieces {
    struct piece *first;
    struct piece *last;
};

struct node {
    enum json_kind kind; /* ABSENT: a member that was removed, or is about to get its value */
    struct span text;    /* as it was written; of an object with `object` no longer read */
    union {
        struct object *object; /* of an OBJECT that has been taken apart */
        struct pieces *pieces; /* of an ARRAY or STRING that something was appended to */
        void *more;            /* either; NULL: the value is its text */
    };
};

struct member {
    struct member *next;
    struct span key_text; /* with its quotes */
    struct span key;      /* decoded */
    uint64_t hash;        /* of `key` */
    struct span place;    /* key and value in the object's text; data NULL: not there */
    struct node value;
};

struct object {
    struct span text;
    bool is_listed; /* all members are in the list, and the text is no longer read */
    unsigned search_count;
    struct member *first;
    struct member *last;
    size_t count;          /* in the list, removed members included */
    struct member **slots; /* open addressing, at most half full; NULL: no index */
    size_t slot_count;     /* a power of two */
};

enum op_type { OP_SET, OP_MERGE, OP_INCREMENT, OP_DECREMENT, OP_APPEND, OP_REMOVE, OP_TYPE_COUNT };

static const struct span op_names[OP_TYPE_COUNT] = {
    {"set", 3}, {"merge", 5}, {"increment", 9}, {"decrement", 9}, {"append", 6}, {"remove", 6}};

struct op {
    struct op *next;
    enum op_type type;
    struct json_value path;
    struct json_value value;
    int64_t by;
};

struct segment {
    struct span text; /* as written, with its quotes */
    struct span key;  /* decoded */
    uint64_t hash;    /* of `key` */
};

struct path {
    size_t count; /* 0: the root */
    struct segment segments[UPDATE_SEGMENTS_MAX];
};

struct update {
    uint64_t value_bytes_max;
    uint64_t hash_seed;
    struct pool op_pool;
    struct pool work_pool;
    struct buffer out;
    struct buffer errors;
    struct op *ops;
    char problem[128];

    /* The application under way. */
    struct node root;
    struct path path;
    const struct op *op;
    size_t op_index;
    bool is_fresh; /* PROTOCOL 4.3 */
    bool may_be_deep;
};

/* "null" is shared by every value that has no text of its own. */
static const struct node null_node = {.kind = JSON_NULL, .text = {"null", 4}};
static const struct node empty_object_node = {.kind = JSON_OBJECT, .text = {"{}", 2}};
static const struct node empty_array_node = {.kind = JSON_ARRAY, .text = {"[]", 2}};

static struct node node_of(struct json_value value)
{
    if (value.kind == JSON_ABSENT)
        return null_node;
    return (struct node){.kind = value.kind, .text = value.text};
}

static struct span string_inside(struct span text)
{
    return span_of(text.data + 1, text.bytes - 2);
}

/* json_string_equals(), quick where nothing is escaped. */
static inline bool string_is(struct json_value string, struct span text)
{
    if (string.has_escape)
        return json_string_equals(string, text);
    return string.text.bytes == text.bytes + 2 &&
           memcmp(string.text.data + 1, text.data, text.bytes) == 0;
}

/* ---- objects ---- */

static size_t object_slot(const struct object *object, uint64_t hash, struct span key)
{
    size_t slot = (size_t)hash & (object->slot_count - 1);
    for (;;) { /* ends: half of the slots are empty */
        const struct member *member = object->slots[slot];
        if (member == NULL || (member->hash == hash && span_equal(member->key, key)))
            return slot;
        slot = (slot + 1) & (object->slot_count - 1);
    }
}

/* The member of that key in the list, removed ones included, or NULL. */
static struct member *object_lookup(const struct object *object, struct segment name)
{
    if (object->slots != NULL)
        return object->slots[object_slot(object, name.hash, name.key)];
    struct member *member = object->first;
    while (member != NULL && !(member->hash == name.hash && span_equal(member->key, name.key)))
        member = member->next;
    return member;
}

/* Make the index, or a larger one; the keys are known to differ. False: no room. */
static bool object_index(struct update *update, struct object *object)
{
    size_t slot_count = object->slots == NULL ? 4 * LINEAR_MEMBERS_MAX : 4 * object->slot_count;
    struct member **slots = pool_take(&update->work_pool, slot_count * sizeof(struct member *));
    if (slots == NULL)
        return false;
    memset(slots, 0, slot_count * sizeof(struct member *));
    object->slots = slots;
    object->slot_count = slot_count;
    for (struct member *member = object->first; member != NULL; member = member->next) {
        size_t slot = (size_t)member->hash & (slot_count - 1);
        while (slots[slot] != NULL)
            slot = (slot + 1) & (slot_count - 1);
        slots[slot] = member;
    }
    return true;
}

/* List a member, still without a value, whose key is not in the list; NULL: no room. */
static struct member *object_add(struct update *update, struct object *object, struct segment name)
{
    bool is_full = object->slots == NULL ? object->count == LINEAR_MEMBERS_MAX
                                         : 2 * (object->count + 1) > object->slot_count;
    if (is_full && !object_index(update, object))
        return NULL;
    struct member *member = pool_take(&update->work_pool, sizeof *member);
    if (member == NULL)
        return NULL;
    *member = (struct member){.key_text = name.text, .key = name.key, .hash = name.hash};
    if (object->slots != NULL)
        object->slots[object_slot(object, name.hash, name.key)] = member;
    if (object->last == NULL)
        object->first = member;
    else
        object->last->next = member;
    object->last = member;
    object->count++;
    return member;
}

/* A key or path segment, decoded. */
static enum weir_status segment_read(struct update *update, struct json_value string,
                                     struct segment *segment)
{
    segment->text = string.text;
    segment->key = string_inside(string.text);
    if (string.has_escape) {
        char *decoded = pool_take(&update->work_pool, string.text.bytes);
        if (decoded == NULL)
            return pool_refusal(&update->work_pool);
        segment->key = span_of(decoded, json_unescape(decoded, string));
    }
    segment->hash = hash_bytes(update->hash_seed, segment->key);
    return WEIR_OK;
}

/* List one member; of a key that comes twice the last value wins. */
static enum weir_status object_list_member(struct update *update, struct object *object,
                                           struct segment name, struct node value)
{
    struct member *member = object_lookup(object, name);
    if (member == NULL)
        member = object_add(update, object, name);
    if (member == NULL)
        return pool_refusal(&update->work_pool);
    member->value = value;
    return WEIR_OK;
}

/* List all members instead of those that were named. Pointers to members end here. */
static enum weir_status object_list(struct update *update, struct object *object)
{
    if (object->is_listed)
        return WEIR_OK;
    struct json_value container = {.text = object->text, .kind = JSON_OBJECT};
    struct json_value key;
    struct json_value value;
    size_t cursor = 0;
    enum weir_status status = WEIR_OK;
    const struct member *named = object->first;
    *object = (struct object){.text = object->text, .is_listed = true};
    while (status == WEIR_OK && json_next(container, &cursor, &key, &value) == WEIR_OK) {
        struct segment name;
        status = segment_read(update, key, &name);
        if (status == WEIR_OK)
            status = object_list_member(update, object, name, node_of(value));
    }
    for (; status == WEIR_OK && named != NULL; named = named->next)
        status = object_list_member(update, object,
                                    (struct segment){named->key_text, named->key, named->hash},
                                    named->value);
    return status;
}

/* Search the object's text for a member that has not been named before. */
static enum weir_status object_search(struct update *update, struct object *object,
                                      struct segment name, struct member **found)
{
    struct json_value container = {.text = object->text, .kind = JSON_OBJECT};
    struct json_value key;
    struct json_value value;
    struct json_value found_key = {0};
    struct json_value found_value = {0};
    size_t cursor = 0;
    size_t count = 0;
    while (json_next(container, &cursor, &key, &value) == WEIR_OK) {
        if (!string_is(key, name.key))
            continue;
        found_key = key;
        found_value = value;
        count++;
    }
    if (count > 1) { /* listing keeps one of them */
        enum weir_status status = object_list(update, object);
        *found = object_lookup(object, name);
        return status;
    }
    *found = NULL;
    if (count == 0)
        return WEIR_OK;
    name.text = found_key.text;
    struct member *member = object_add(update, object, name);
    if (member == NULL)
        return pool_refusal(&update->work_pool);
    const char *end = found_value.text.data + found_value.text.bytes;
    member->place = span_of(name.text.data, (size_t)(end - name.text.data));
    member->value = node_of(found_value);
    *found = member;
    return WEIR_OK;
}

/* The member of that key, removed ones included, or NULL. */
static enum weir_status object_find(struct update *update, struct object *object,
                                    struct segment name, struct member **found)
{
    *found = object_lookup(object, name);
    if (*found != NULL || object->is_listed)
        return WEIR_OK;
    if (object->search_count++ < SEARCHES_MAX)
        return object_search(update, object, name, found);
    enum weir_status status = object_list(update, object);
    *found = object_lookup(object, name);
    return status;
}

/* The member of that key, added without a value when there is none. */
static enum weir_status object_member(struct update *update, struct object *object,
                                      struct segment name, struct member **member)
{
    enum weir_status status = object_find(update, object, name, member);
    if (status != WEIR_OK || *member != NULL)
        return status;
    *member = object_add(update, object, name);
    return *member != NULL ? WEIR_OK : pool_refusal(&update->work_pool);
}

/* Prepare an object for being changed; no effect on one that has been. */
static enum weir_status node_open(struct update *update, struct node *node)
{
    weir_assert(node->kind == JSON_OBJECT);
    if (node->object != NULL)
        return WEIR_OK;
    struct object *object = pool_take(&update->work_pool, sizeof *object);
    if (object == NULL)
        return pool_refusal(&update->work_pool);
    *object = (struct object){.text = node->text, .is_listed = node->text.bytes == 2};
    node->object = object;
    return WEIR_OK;
}

/* The object at the end of the path's first `count` segments. What is not there, or not an object,
 * becomes one on the way. */
static enum weir_status node_walk(struct update *update, size_t count, struct object **end)
{
    struct node *node = &update->root;
    for (size_t index = 0;; index++) {
        if (node->kind != JSON_OBJECT)
            *node = empty_object_node;
        enum weir_status status = node_open(update, node);
        if (status != WEIR_OK)
            return status;
        if (index == count) {
            *end = node->object;
            return WEIR_OK;
        }
        struct member *member;
        status = object_member(update, node->object, update->path.segments[index], &member);
        if (status != WEIR_OK)
            return status;
        if (member->value.kind != JSON_OBJECT)
            member->value = empty_object_node;
        node = &member->value;
    }
}

/* ---- numbers (PROTOCOL 1.3) ---- */

struct integer {
    bool is_negative;
    uint64_t magnitude;
};

/* False: the literal is not an integer of 64 bits, signed or unsigned, but a double. */
static bool integer_read(struct span text, struct integer *integer)
{
    size_t index = text.data[0] == '-';
    *integer = (struct integer){.is_negative = index == 1};
    for (; index < text.bytes; index++) {
        unsigned digit = (unsigned)(unsigned char)text.data[index] - '0';
        if (digit > 9 || __builtin_mul_overflow(integer->magnitude, 10u, &integer->magnitude) ||
            __builtin_add_overflow(integer->magnitude, digit, &integer->magnitude))
            return false;
    }
    if (!integer->is_negative)
        return true;
    return integer->magnitude != 0 && integer->magnitude <= (uint64_t)INT64_MAX + 1;
}

static int64_t integer_negative(uint64_t magnitude)
{
    return -(int64_t)(magnitude - 1) - 1;
}

static size_t unsigned_print(uint64_t value, char *out)
{
    char digits[20];
    size_t start = sizeof digits;
    do {
        digits[--start] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    memcpy(out, digits + start, sizeof digits - start);
    return sizeof digits - start;
}

static size_t signed_print(int64_t value, char *out)
{
    if (value >= 0)
        return unsigned_print((uint64_t)value, out);
    out[0] = '-';
    return 1 + unsigned_print(0 - (uint64_t)value, out + 1);
}

/* `integer` plus `by`, or minus it, as text; 0 bytes: the result is not to be had in 64 bits. */
static size_t integer_shift(struct integer integer, int64_t by, bool is_minus, char out[24])
{
    int64_t sum;
    uint64_t unsigned_sum;
    bool overflows;
    if (integer.is_negative) {
        int64_t value = integer_negative(integer.magnitude);
        overflows = is_minus ? __builtin_sub_overflow(value, by, &sum)
                             : __builtin_add_overflow(value, by, &sum);
        return overflows ? 0 : signed_print(sum, out);
    }
    /* The builtins compute without bounds before they look at the type of the result. */
    overflows = is_minus ? __builtin_sub_overflow(integer.magnitude, by, &sum)
                         : __builtin_add_overflow(integer.magnitude, by, &sum);
    if (!overflows)
        return signed_print(sum, out);
    overflows = is_minus ? __builtin_sub_overflow(integer.magnitude, by, &unsigned_sum)
                         : __builtin_add_overflow(integer.magnitude, by, &unsigned_sum);
    return overflows ? 0 : unsigned_print(unsigned_sum, out);
}

/* A decimal: digits * 10^exponent. */
struct decimal {
    uint64_t digits;
    int exponent;
};

static bool decimal_reads_back(struct decimal decimal, double magnitude)
{
    char text[40];
    (void)snprintf(text, sizeof text, "%" PRIu64 "e%d", decimal.digits, decimal.exponent);
    return strtod(text, NULL) == magnitude;
}

/* `magnitude` (positive, finite) to `count` significant digits. */
static struct decimal decimal_round(double magnitude, int count)
{
    char text[40];
    struct decimal decimal = {0};
    (void)snprintf(text, sizeof text, "%.*e", count - 1, magnitude);
    const char *p = text;
    for (; *p != 'e'; p++) {
        if (*p >= '0' && *p <= '9')
            decimal.digits = decimal.digits * 10 + (uint64_t)(*p - '0');
    }
    decimal.exponent = (int)strtol(p + 1, NULL, 10) - (count - 1);
    return decimal;
}

/* The shortest decimal that reads back to `magnitude`. What has up to 15 digits is found with 15: a
 * normal double keeps so many exactly (DBL_DIG). Just above a power of two the double's own range is
 * wider than below it, so that the neighbour of the nearest decimal may be inside when the nearest
 * is not. */
static struct decimal decimal_shortest(double magnitude)
{
    struct decimal decimal = {0};
    for (int count = magnitude < DBL_MIN ? 1 : DBL_DIG; count <= DBL_DECIMAL_DIG; count++) {
        decimal = decimal_round(magnitude, count);
        if (decimal_reads_back(decimal, magnitude))
            break;
        decimal.digits++;
        if (decimal_reads_back(decimal, magnitude))
            break;
    }
    while (decimal.digits % 10 == 0) { /* ends: the first digit is not 0 */
        decimal.digits /= 10;
        decimal.exponent++;
    }
    return decimal;
}

/* A finite double as PROTOCOL 1.3 prints it: with a fraction from 1e-5 to below 1e16, beyond with an
 * exponent. Returns bytes written. */
static size_t double_print(double value, char out[40])
{
    const char *sign = signbit(value) ? "-" : "";
    if (value == 0)
        return (size_t)snprintf(out, 40, "%s0.0", sign);
    char digits[24];
    struct decimal decimal = decimal_shortest(fabs(value));
    int count = snprintf(digits, sizeof digits, "%" PRIu64, decimal.digits);
    int point = count + decimal.exponent; /* digits in front of the point */
    int bytes;
    if (decimal.exponent >= 0 && point <= 16)
        bytes = snprintf(out, 40, "%s%s%.*s.0", sign, digits, decimal.exponent, "000000000000000");
    else if (point > 0 && point <= 16)
        bytes = snprintf(out, 40, "%s%.*s.%s", sign, point, digits, digits + point);
    else if (point > -5 && point <= 0)
        bytes = snprintf(out, 40, "%s0.%.*s%s", sign, -point, "00000", digits);
    else
        bytes = snprintf(out, 40, "%s%c%s%se%d", sign, digits[0], count > 1 ? "." : "", digits + 1,
                         point - 1);
    return (size_t)bytes;
}

/* The double that a number's text stands for. No process of weir sets a locale. */
static enum weir_status double_read(struct update *update, struct span text, double *value)
{
    char *copy = pool_take(&update->work_pool, text.bytes + 1);
    if (copy == NULL)
        return pool_refusal(&update->work_pool);
    memcpy(copy, text.data, text.bytes);
    copy[text.bytes] = '\0';
    *value = strtod(copy, NULL);
    return WEIR_OK;
}

static enum weir_status number_node(struct update *update, const char *text, size_t bytes,
                                    struct node *node)
{
    char *copy = pool_take(&update->work_pool, bytes);
    if (copy == NULL)
        return pool_refusal(&update->work_pool);
    memcpy(copy, text, bytes);
    *node = (struct node){.kind = JSON_NUMBER, .text = span_of(copy, bytes)};
    return WEIR_OK;
}

/* ---- operations that fail (PROTOCOL 4: best effort) ---- */

#define KEY_FORMAT "\\\"%.*s\\\""
#define KEY_ARGUMENTS(segment) (int)((segment).text.bytes - 2), (segment).text.data + 1

static const char *const kind_words[] = {"absent",   "null",     "a boolean", "a boolean",
                                         "a number", "a string", "an array",  "an object"};

static enum weir_status vprint_error(struct update *update, const char *code, const char *format,
                                     va_list arguments)
{
    char message[2048]; /* room for the longest key, all of it escapes */
    (void)vsnprintf(message, sizeof message, format, arguments);
    const char *name = op_names[update->op->type].data;
    return buffer_printf(
        &update->errors, "%s{\"op_index\":%zu,\"code\":\"%s.%s\",\"message\":\"%s: %s\"}",
        update->errors.bytes == 0 ? "[" : ",", update->op_index, name, code, name, message);
}

/* Note that the operation failed; INVALID, unless that cannot be noted. The format makes the inside
 * of a JSON string: keys are given as they were written. */
static enum weir_status op_fails(struct update *update, const char *code, const char *format, ...)
    WEIR_PRINTF(3, 4);
static enum weir_status op_fails(struct update *update, const char *code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    enum weir_status status = vprint_error(update, code, format, arguments);
    va_end(arguments);
    if (status == WEIR_FULL)
        return WEIR_TOO_LARGE;
    return status == WEIR_OK ? WEIR_INVALID : status;
}

static enum weir_status fails_target(struct update *update)
{
    return op_fails(update, "target_not_object",
                    "the value is %s; the key " KEY_FORMAT " needs an object",
                    kind_words[update->root.kind], KEY_ARGUMENTS(update->path.segments[0]));
}

/* The place the path names, for a sentence about what is there. */
static enum weir_status fails_place(struct update *update, const char *code, const char *what,
                                    enum json_kind kind)
{
    const struct path *path = &update->path;
    if (path->count == 0)
        return op_fails(update, code, "the value is %s; %s", kind_words[kind], what);
    return op_fails(update, code, "the value at " KEY_FORMAT " is %s; %s",
                    KEY_ARGUMENTS(path->segments[path->count - 1]), kind_words[kind], what);
}

/* ---- checks of paths and of merged values (PROTOCOL 4.1, 4.2) ---- */

static bool is_prototype_name(struct span key)
{
    return span_equal(key, SPAN_LITERAL("__proto__")) ||
           span_equal(key, SPAN_LITERAL("constructor")) ||
           span_equal(key, SPAN_LITERAL("prototype"));
}

static enum weir_status path_take(struct update *update, struct json_value string)
{
    size_t index = update->path.count;
    struct segment *segment = &update->path.segments[index];
    enum weir_status status = segment_read(update, string, segment);
    if (status != WEIR_OK)
        return status;
    if (segment->key.bytes == 0)
        return op_fails(update, "path.empty_segment", "segment %zu of the path is empty", index);
    if (segment->key.bytes > UPDATE_SEGMENT_BYTES_MAX)
        return op_fails(update, "path.segment_too_long",
                        "segment %zu of the path is %zu bytes long; at most %u are allowed", index,
                        segment->key.bytes, UPDATE_SEGMENT_BYTES_MAX);
    if (is_prototype_name(segment->key))
        return op_fails(update, "path.proto_polluted",
                        "segment %zu of the path, " KEY_FORMAT ", is not allowed as a key", index,
                        KEY_ARGUMENTS(*segment));
    update->path.count++;
    return WEIR_OK;
}

static bool path_is_too_long(struct json_value array)
{
    struct json_value segment;
    size_t cursor = 0;
    size_t count = 0;
    while (count <= UPDATE_SEGMENTS_MAX && json_next(array, &cursor, NULL, &segment) == WEIR_OK)
        count++;
    return count > UPDATE_SEGMENTS_MAX;
}

/* The operation's path into update->path. Absent, null, "" and [] are the root. */
static enum weir_status path_read(struct update *update, struct json_value path)
{
    update->path.count = 0;
    if (path.kind == JSON_STRING)
        return path.text.bytes == 2 ? WEIR_OK : path_take(update, path);
    if (path.kind != JSON_ARRAY)
        return WEIR_OK;
    if (path_is_too_long(path))
        return op_fails(update, "path.too_deep", "the path has more than %u segments",
                        UPDATE_SEGMENTS_MAX);
    struct json_value segment;
    size_t cursor = 0;
    enum weir_status status = WEIR_OK;
    while (status == WEIR_OK && json_next(path, &cursor, NULL, &segment) == WEIR_OK)
        status = path_take(update, segment);
    return status;
}

/* Whether a value (validated) is nested deeper than `depth_max`, the values of repeated keys included.
 * Every level has an opening bracket, so most values are settled by their length or by counting. */
static bool value_is_deeper(struct span text, unsigned depth_max)
{
    if (text.bytes / 2 <= depth_max)
        return false;
    size_t count = 0;
    for (size_t index = 0; index < text.bytes && count <= depth_max; index++)
        count += (text.data[index] | 0x20) == '{'; /* '[' | 0x20 is '{' */
    if (count <= depth_max)
        return false;
    struct json_value value;
    return json_scan(text, depth_max, &value, NULL) == WEIR_TOO_LARGE;
}

/* A value of the operation has come to stand inside `levels` containers. */
static void note_depth(struct update *update, size_t levels)
{
    const struct json_value *value = &update->op->value;
    if (update->may_be_deep || (value->kind != JSON_ARRAY && value->kind != JSON_OBJECT))
        return;
    update->may_be_deep = levels >= UPDATE_DEPTH_MAX ||
                          value_is_deeper(value->text, UPDATE_DEPTH_MAX - (unsigned)levels);
}

/* The value of a merge, taken apart, into *source. */
static enum weir_status merge_read(struct update *update, struct node *source)
{
    if (source->kind != JSON_OBJECT)
        return op_fails(update, "value.not_an_object", "the value is %s, not an object",
                        kind_words[source->kind]);
    enum weir_status status = node_open(update, source);
    if (status == WEIR_OK)
        status = object_list(update, source->object);
    if (status != WEIR_OK)
        return status;
    if (source->object->count > UPDATE_MERGE_KEYS_MAX)
        return op_fails(update, "value.too_many_keys",
                        "the value has %zu keys; at most %u are allowed", source->object->count,
                        UPDATE_MERGE_KEYS_MAX);
    for (const struct member *member = source->object->first; member; member = member->next) {
        if (is_prototype_name(member->key))
            return op_fails(update, "value.proto_polluted",
                            "the key " KEY_FORMAT " of the value is not allowed",
                            (int)(member->key_text.bytes - 2), member->key_text.data + 1);
    }
    if (value_is_deeper(source->text, UPDATE_MERGE_DEPTH_MAX))
        return op_fails(update, "value.too_deep", "the value is nested more than %u levels deep",
                        UPDATE_MERGE_DEPTH_MAX);
    return WEIR_OK;
}

/* ---- the operations (PROTOCOL 4.4); update->path has been read ---- */

/* The member a key path names, or NULL; INVALID: the item is not an object, which has been noted. */
static enum weir_status key_find(struct update *update, struct member **member)
{
    if (update->root.kind != JSON_OBJECT)
        return fails_target(update);
    enum weir_status status = node_open(update, &update->root);
    if (status != WEIR_OK)
        return status;
    return object_find(update, update->root.object, update->path.segments[0], member);
}

/* Give the member a key path names its value, which is `member` when key_find() found it. */
static enum weir_status key_set(struct update *update, struct member *member, struct node value)
{
    if (member == NULL)
        member = object_add(update, update->root.object, update->path.segments[0]);
    if (member == NULL)
        return pool_refusal(&update->work_pool);
    member->value = value;
    return WEIR_OK;
}

static enum weir_status apply_set(struct update *update)
{
    struct member *member = NULL;
    note_depth(update, update->path.count);
    if (update->path.count == 0) {
        update->root = node_of(update->op->value);
        return WEIR_OK;
    }
    enum weir_status status = key_find(update, &member);
    return status == WEIR_OK ? key_set(update, member, node_of(update->op->value)) : status;
}

static enum weir_status apply_remove(struct update *update)
{
    struct member *member = NULL;
    if (update->path.count == 0) {
        update->root = null_node;
        return WEIR_OK;
    }
    enum weir_status status = key_find(update, &member);
    if (status == WEIR_OK && member != NULL)
        member->value = (struct node){.kind = JSON_ABSENT};
    return status;
}

static enum weir_status apply_merge(struct update *update)
{
    struct node source = node_of(update->op->value);
    struct object *target;
    enum weir_status status = merge_read(update, &source);
    if (status != WEIR_OK)
        return status;
    if (update->path.count == 0 && update->root.kind != JSON_OBJECT)
        return WEIR_OK; /* nothing to merge into, and no error */
    note_depth(update, update->path.count);
    status = node_walk(update, update->path.count, &target);
    if (status == WEIR_OK && source.object->count > SEARCHES_MAX)
        status = object_list(update, target);
    for (const struct member *from = source.object->first; status == WEIR_OK && from != NULL;
         from = from->next) {
        struct member *to;
        status = object_member(update, target,
                               (struct segment){from->key_text, from->key, from->hash}, &to);
        if (status == WEIR_OK)
            to->value = from->value;
    }
    return status;
}

static enum weir_status fails_arithmetic(struct update *update)
{
    return fails_place(update, "not_number", "the result does not fit 64 bits", JSON_NUMBER);
}

/* The number itself as a step from nothing: 0 plus or minus `by`. */
static enum weir_status step_node(struct update *update, struct node *node)
{
    char text[24];
    size_t bytes =
        integer_shift((struct integer){0}, update->op->by, update->op->type == OP_DECREMENT, text);
    return number_node(update, text, bytes, node);
}

/* The number `from` plus or minus `by`. */
static enum weir_status step_number(struct update *update, struct span from, struct node *node)
{
    char text[40];
    struct integer integer;
    const struct op *op = update->op;
    bool is_minus = op->type == OP_DECREMENT;
    if (integer_read(from, &integer)) {
        size_t bytes = integer_shift(integer, op->by, is_minus, text);
        return bytes > 0 ? number_node(update, text, bytes, node) : fails_arithmetic(update);
    }
    double value = 0;
    enum weir_status status = double_read(update, from, &value);
    if (status != WEIR_OK)
        return status;
    value = is_minus ? value - (double)op->by : value + (double)op->by;
    if (!isfinite(value))
        return fails_arithmetic(update);
    return number_node(update, text, double_print(value, text), node);
}

/* increment and decrement. */
static enum weir_status apply_step(struct update *update)
{
    struct member *member = NULL;
    struct node stepped;
    bool is_root = update->path.count == 0;
    enum weir_status status = is_root ? WEIR_OK : key_find(update, &member);
    if (status != WEIR_OK)
        return status;
    struct node current = is_root          ? update->root
                          : member != NULL ? member->value
                                           : (struct node){0};
    bool is_missing = is_root ? update->is_fresh : current.kind == JSON_ABSENT;
    if (!is_missing && current.kind != JSON_NUMBER)
        return fails_place(update, "not_number", "only a number can be counted", current.kind);
    status = is_missing ? step_node(update, &stepped) : step_number(update, current.text, &stepped);
    if (status != WEIR_OK)
        return status;
    if (!is_root)
        return key_set(update, member, stepped);
    update->root = stepped;
    return WEIR_OK;
}

/* Put `text` behind an array or a string. */
static enum weir_status node_append(struct update *update, struct node *node, struct span text)
{
    struct piece *piece = pool_take(&update->work_pool, sizeof *piece);
    if (piece == NULL)
        return pool_refusal(&update->work_pool);
    *piece = (struct piece){NULL, text};
    if (node->pieces == NULL) {
        struct pieces *pieces = pool_take(&update->work_pool, sizeof *pieces);
        if (pieces == NULL)
            return pool_refusal(&update->work_pool);
        *pieces = (struct pieces){piece, piece};
        node->pieces = pieces;
        return WEIR_OK;
    }
    node->pieces->last->next = piece;
    node->pieces->last = piece;
    return WEIR_OK;
}

/* What an append makes where nothing is: [value]; or the value itself, when it is a string and that
 * is wanted. */
static enum weir_status initial_node(struct update *update, bool strings_stay, struct node *node)
{
    const struct json_value *value = &update->op->value;
    if (strings_stay && value->kind == JSON_STRING) {
        *node = node_of(*value);
        return WEIR_OK;
    }
    *node = empty_array_node;
    return node_append(update, node, value->text);
}

/* Append to a value that is there. */
static enum weir_status append_to(struct update *update, struct node *node)
{
    const struct json_value *value = &update->op->value;
    switch (node->kind) {
    case JSON_ARRAY:
        return node_append(update, node, value->text);
    case JSON_STRING:
        if (value->kind == JSON_STRING)
            return node_append(update, node, string_inside(value->text));
        return fails_place(update, "type_mismatch", "only a string can be appended to it",
                           node->kind);
    case JSON_NULL:
        return initial_node(update, true, node);
    default:
        return fails_place(update, "type_mismatch",
                           "only arrays, strings and null can be appended to", node->kind);
    }
}

static enum weir_status append_at_root(struct update *update)
{
    if (update->is_fresh)
        return initial_node(update, true, &update->root);
    return append_to(update, &update->root);
}

/* An append that fails has changed nothing: its leaf is there only when every object on the way was
 * there before. */
static enum weir_status apply_append(struct update *update)
{
    size_t count = update->path.count;
    struct object *object;
    struct member *leaf;
    note_depth(update, count + 1);
    if (count == 0)
        return append_at_root(update);
    if (update->root.kind != JSON_OBJECT)
        return fails_target(update);
    enum weir_status status = node_walk(update, count - 1, &object);
    if (status != WEIR_OK)
        return status;
    status = object_member(update, object, update->path.segments[count - 1], &leaf);
    if (status != WEIR_OK)
        return status;
    if (leaf->value.kind == JSON_ABSENT)
        return initial_node(update, count == 1, &leaf->value);
    return append_to(update, &leaf->value);
}

static enum weir_status (*const appliers[OP_TYPE_COUNT])(struct update *) = {
    apply_set, apply_merge, apply_step, apply_step, apply_append, apply_remove};

/* ---- printing ---- */

static inline enum weir_status put(struct buffer *out, struct span text)
{
    if (out->capacity_bytes - out->bytes < text.bytes)
        return buffer_append(out, text);
    memcpy(out->data + out->bytes, text.data, text.bytes);
    out->bytes += text.bytes;
    return WEIR_OK;
}

/* put(), with a comma in front of it unless it is the first. */
static enum weir_status put_next(struct buffer *out, bool *is_first, struct span text)
{
    enum weir_status status = *is_first ? WEIR_OK : put(out, SPAN_LITERAL(","));
    *is_first = false;
    return status == WEIR_OK ? put(out, text) : status;
}

static enum weir_status print_array(struct buffer *out, const struct node *node)
{
    struct span inside = span_of(node->text.data, node->text.bytes - 1); /* with its "[" */
    bool is_first = inside.bytes == 1;
    enum weir_status status = put(out, inside);
    for (const struct piece *piece = node->pieces->first; status == WEIR_OK && piece != NULL;
         piece = piece->next)
        status = put_next(out, &is_first, piece->text);
    return status == WEIR_OK ? put(out, SPAN_LITERAL("]")) : status;
}

static enum weir_status print_string(struct buffer *out, const struct node *node)
{
    enum weir_status status = put(out, span_of(node->text.data, node->text.bytes - 1));
    for (const struct piece *piece = node->pieces->first; status == WEIR_OK && piece != NULL;
         piece = piece->next)
        status = put(out, piece->text);
    return status == WEIR_OK ? put(out, SPAN_LITERAL("\"")) : status;
}

static enum weir_status print_node(struct buffer *out, const struct node *node);

static enum weir_status print_member(struct buffer *out, bool *is_first,
                                     const struct member *member)
{
    if (member->value.kind == JSON_ABSENT)
        return WEIR_OK;
    enum weir_status status = put_next(out, is_first, member->key_text);
    if (status == WEIR_OK)
        status = put(out, SPAN_LITERAL(":"));
    return status == WEIR_OK ? print_node(out, &member->value) : status;
}

/* The members of the list that have a place in the text, in the order of their places. */
static size_t sort_placed(const struct object *object, const struct member *placed[SEARCHES_MAX])
{
    size_t count = 0;
    for (const struct member *member = object->first; member != NULL; member = member->next) {
        if (member->place.data == NULL)
            continue;
        size_t index = count++;
        for (; index > 0 && placed[index - 1]->place.data > member->place.data; index--)
            placed[index] = placed[index - 1];
        placed[index] = member;
    }
    return count;
}

/* The text of an object that is not listed, with the named members as they are now. */
static enum weir_status print_text(struct buffer *out, bool *is_first, const struct object *object)
{
    const struct member *placed[SEARCHES_MAX];
    size_t count = sort_placed(object, placed);
    const char *start = object->text.data + 1; /* of a member, or the closing bracket */
    const char *end = object->text.data + object->text.bytes - 1;
    enum weir_status status = WEIR_OK;
    for (size_t index = 0; status == WEIR_OK && index < count; index++) {
        struct span place = placed[index]->place;
        if (place.data > start) /* without the comma between them */
            status = put_next(out, is_first, span_of(start, (size_t)(place.data - start) - 1));
        if (status == WEIR_OK)
            status = print_member(out, is_first, placed[index]);
        start = place.data + place.bytes;
        start += *start == ',';
    }
    if (status == WEIR_OK && start < end)
        status = put_next(out, is_first, span_of(start, (size_t)(end - start)));
    return status;
}

static enum weir_status print_object(struct buffer *out, const struct object *object)
{
    bool is_first = true;
    enum weir_status status = put(out, SPAN_LITERAL("{"));
    if (status == WEIR_OK && !object->is_listed)
        status = print_text(out, &is_first, object);
    for (const struct member *member = object->first; status == WEIR_OK && member != NULL;
         member = member->next) {
        if (member->place.data == NULL)
            status = print_member(out, &is_first, member);
    }
    return status == WEIR_OK ? put(out, SPAN_LITERAL("}")) : status;
}

/* Recursion: only objects that paths walked through are taken apart, so no deeper than a path. */
static enum weir_status print_node(struct buffer *out, const struct node *node)
{
    if (node->more == NULL)
        return put(out, node->text);
    switch (node->kind) {
    case JSON_OBJECT:
        return print_object(out, node->object);
    case JSON_ARRAY:
        return print_array(out, node);
    default:
        return print_string(out, node);
    }
}

/* ---- applying ---- */

static enum weir_status too_large(struct update_result *result, const char *problem)
{
    result->problem = problem;
    return WEIR_TOO_LARGE;
}

/* The value after the last operation: a text that is there already is not copied, but a number may
 * have been made in the pool. */
static enum weir_status finish_value(struct update *update, struct span old_value,
                                     struct update_result *result)
{
    static const char problem[] = "the new value is larger than an item may be";
    const struct node *root = &update->root;
    result->value = root->text;
    if (root->more != NULL || root->kind == JSON_NUMBER) {
        size_t guess = old_value.bytes + 64;
        enum weir_status status = WEIR_OK;
        if (guess <= update->value_bytes_max)
            status = buffer_reserve(&update->out, guess);
        if (status == WEIR_OK)
            status = print_node(&update->out, root);
        if (status != WEIR_OK)
            return status == WEIR_FULL ? too_large(result, problem) : status;
        result->value = buffer_span(&update->out);
    }
    if (result->value.bytes > update->value_bytes_max)
        return too_large(result, problem);
    struct json_value value;
    if (update->may_be_deep &&
        json_scan(result->value, UPDATE_DEPTH_MAX, &value, NULL) == WEIR_TOO_LARGE)
        return too_large(result, "the new value is nested deeper than an item may be");
    return WEIR_OK;
}

static enum weir_status apply_ops(struct update *update, struct update_result *result)
{
    update->op_index = 0;
    for (const struct op *op = update->ops; op != NULL; op = op->next, update->op_index++) {
        update->op = op;
        enum weir_status status = path_read(update, op->path);
        if (status == WEIR_OK)
            status = appliers[op->type](update);
        if (status == WEIR_OK)
            update->is_fresh = false;
        else if (status == WEIR_TOO_LARGE && update->work_pool.failure == WEIR_TOO_LARGE)
            return too_large(result, "the operations need more memory than an update may use");
        else if (status == WEIR_TOO_LARGE)
            return too_large(result, "too many operations failed: the list of errors is too long");
        else if (status != WEIR_INVALID)
            return status;
    }
    return WEIR_OK;
}

static enum weir_status finish_errors(struct update *update, struct update_result *result)
{
    if (update->errors.bytes == 0)
        return WEIR_OK;
    enum weir_status status = buffer_append(&update->errors, SPAN_LITERAL("]"));
    if (status == WEIR_FULL)
        return too_large(result, "too many operations failed: the list of errors is too long");
    result->errors = buffer_span(&update->errors);
    return status;
}

enum weir_status update_apply(struct update *update, struct span old_value,
                              struct update_result *result)
{
    *result = (struct update_result){0};
    if (update->out.capacity_bytes > OUT_KEPT_BYTES) {
        size_t limit_bytes = update->out.limit_bytes;
        buffer_fini(&update->out);
        buffer_init(&update->out, limit_bytes);
    }
    buffer_clear(&update->out);
    buffer_clear(&update->errors);
    update->work_pool.failure = WEIR_OK;
    update->is_fresh = old_value.data == NULL;
    update->may_be_deep = false;
    update->root = empty_object_node;
    if (!update->is_fresh)
        update->root = (struct node){.kind = json_kind_of(old_value.data[0]), .text = old_value};
    enum weir_status status = apply_ops(update, result);
    if (status == WEIR_OK)
        status = finish_value(update, old_value, result);
    if (status == WEIR_OK)
        status = finish_errors(update, result);
    pool_empty(&update->work_pool);
    return status;
}

/* ---- reading the list (PROTOCOL 4, first table) ---- */

enum field { FIELD_TYPE, FIELD_PATH, FIELD_VALUE, FIELD_BY, FIELD_COUNT };
static const struct span field_names[FIELD_COUNT] = {
    {"type", 4}, {"path", 4}, {"value", 5}, {"by", 2}};

static enum weir_status refuse_list(struct update *update, const char **problem,
                                    const char *sentence)
{
    update->ops = NULL;
    *problem = sentence;
    return WEIR_INVALID;
}

static enum weir_status refuse_op(struct update *update, const char **problem, const char *format,
                                  ...) WEIR_PRINTF(3, 4);
static enum weir_status refuse_op(struct update *update, const char **problem, const char *format,
                                  ...)
{
    va_list arguments;
    int bytes = snprintf(update->problem, sizeof update->problem, "ops[%zu]", update->op_index);
    va_start(arguments, format);
    (void)vsnprintf(update->problem + bytes, sizeof update->problem - (size_t)bytes, format,
                    arguments);
    va_end(arguments);
    return refuse_list(update, problem, update->problem);
}

static enum weir_status read_fields(struct update *update, struct json_value object,
                                    struct json_value fields[FIELD_COUNT], const char **problem)
{
    struct json_value key;
    struct json_value value;
    size_t cursor = 0;
    memset(fields, 0, FIELD_COUNT * sizeof *fields);
    while (json_next(object, &cursor, &key, &value) == WEIR_OK) {
        for (size_t index = 0; index < FIELD_COUNT; index++) {
            if (!string_is(key, field_names[index]))
                continue;
            if (fields[index].kind != JSON_ABSENT)
                return refuse_op(update, problem, ".%s comes twice", field_names[index].data);
            fields[index] = value;
        }
    }
    return WEIR_OK;
}

static bool read_type(struct json_value name, enum op_type *type)
{
    for (size_t index = 0; index < OP_TYPE_COUNT; index++) {
        if (name.kind == JSON_STRING && string_is(name, op_names[index])) {
            *type = (enum op_type)index;
            return true;
        }
    }
    return false;
}

static bool is_array_of_strings(struct json_value array)
{
    struct json_value element;
    size_t cursor = 0;
    if (array.kind != JSON_ARRAY)
        return false;
    while (json_next(array, &cursor, NULL, &element) == WEIR_OK) {
        if (element.kind != JSON_STRING)
            return false;
    }
    return true;
}

/* An integer literal of signed 64 bits. */
static bool read_by(struct json_value number, int64_t *by)
{
    struct integer integer;
    if (number.kind != JSON_NUMBER || !integer_read(number.text, &integer))
        return false;
    if (!integer.is_negative && integer.magnitude > INT64_MAX)
        return false;
    *by = integer.is_negative ? integer_negative(integer.magnitude) : (int64_t)integer.magnitude;
    return true;
}

static enum weir_status check_path(struct update *update, const struct op *op, const char **problem)
{
    bool takes_many = op->type == OP_MERGE || op->type == OP_APPEND;
    if (op->path.kind == JSON_STRING)
        return WEIR_OK;
    if (!takes_many && op->path.kind == JSON_ABSENT)
        return refuse_op(update, problem, ".path is missing");
    if (!takes_many)
        return refuse_op(update, problem, ".path must be a string");
    if (op->path.kind == JSON_ABSENT || op->path.kind == JSON_NULL || is_array_of_strings(op->path))
        return WEIR_OK;
    return refuse_op(update, problem, ".path must be a string or an array of strings");
}

static enum weir_status read_op(struct update *update, struct json_value text, struct op *op,
                                const char **problem)
{
    struct json_value fields[FIELD_COUNT];
    if (text.kind != JSON_OBJECT)
        return refuse_op(update, problem, " must be an object");
    enum weir_status status = read_fields(update, text, fields, problem);
    if (status != WEIR_OK)
        return status;
    *op = (struct op){.path = fields[FIELD_PATH], .value = fields[FIELD_VALUE]};
    if (fields[FIELD_TYPE].kind == JSON_ABSENT)
        return refuse_op(update, problem, ".type is missing");
    if (!read_type(fields[FIELD_TYPE], &op->type))
        return refuse_op(update, problem,
                         ".type must be one of set, merge, increment, decrement, append, remove");
    status = check_path(update, op, problem);
    if (status != WEIR_OK)
        return status;
    bool needs_value = op->type == OP_MERGE || op->type == OP_APPEND;
    if (needs_value && op->value.kind == JSON_ABSENT)
        return refuse_op(update, problem, ".value is missing");
    if (op->type != OP_INCREMENT && op->type != OP_DECREMENT)
        return WEIR_OK;
    if (fields[FIELD_BY].kind == JSON_ABSENT)
        return refuse_op(update, problem, ".by is missing");
    if (!read_by(fields[FIELD_BY], &op->by))
        return refuse_op(update, problem,
                         ".by must be an integer of signed 64 bits, without fraction or exponent");
    return WEIR_OK;
}

static enum weir_status read_list(struct update *update, struct json_value list,
                                  const char **problem)
{
    struct op **link = &update->ops;
    struct json_value text;
    size_t cursor = 0;
    for (; json_next(list, &cursor, NULL, &text) == WEIR_OK; update->op_index++) {
        struct op *op = pool_take(&update->op_pool, sizeof *op);
        if (op == NULL) {
            (void)refuse_list(update, problem, "ops holds too many operations");
            return pool_refusal(&update->op_pool);
        }
        enum weir_status status = read_op(update, text, op, problem);
        if (status != WEIR_OK)
            return status;
        *link = op;
        link = &op->next;
    }
    return WEIR_OK;
}

enum weir_status update_parse(struct update *update, struct span ops, const char **problem)
{
    pool_empty(&update->op_pool);
    update->ops = NULL;
    update->op_index = 0;
    if (ops.bytes == 0)
        return refuse_list(update, problem, "ops is missing");
    if (json_kind_of(ops.data[0]) != JSON_ARRAY)
        return refuse_list(update, problem, "ops must be an array");
    return read_list(update, (struct json_value){.text = ops, .kind = JSON_ARRAY}, problem);
}

/* ---- life ---- */

struct update *update_open(uint64_t value_bytes_max)
{
    struct update *update = calloc(1, sizeof *update);
    if (update == NULL)
        return NULL;
    update->value_bytes_max = value_bytes_max;
    update->op_pool.limit_bytes = update_work_bytes_max(value_bytes_max);
    update->work_pool.limit_bytes = update_work_bytes_max(value_bytes_max);
    buffer_init(&update->out, value_bytes_max);
    buffer_init(&update->errors, UPDATE_ERRORS_BYTES_MAX);
    /* Keys must not be chosen to collide; a value that is not random only makes that possible. */
    if (getrandom(&update->hash_seed, sizeof update->hash_seed, GRND_NONBLOCK) < 0)
        update->hash_seed = (uint64_t)(uintptr_t)update;
    return update;
}

void update_close(struct update *update)
{
    if (update == NULL)
        return;
    pool_fini(&update->op_pool);
    pool_fini(&update->work_pool);
    buffer_fini(&update->out);
    buffer_fini(&update->errors);
    free(update);
}
