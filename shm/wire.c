/* Encoding goes through msgpack-c's packer. Decoding does not go through its unpacker, which
 * reserves memory from a container's header before it has seen the contents: a body here is one
 * flat array, so a walk over its heads, each checked against the bytes that are left, yields every
 * field in place. */
#include "shm/wire.h"

#include <msgpack/pack.h>
#include <stdlib.h>

#include "shm/limits.h"

enum {
    LENGTH_BYTES = 4,
    LENGTH_MIN = WIRE_HEADER_BYTES - LENGTH_BYTES + 1, /* an empty array is one byte */
    NUMBER_BYTES_MAX = 9,
    TYPE_NUMBERS = 80, /* the type table's size; numbers are small and dense enough */
};

struct type_form {
    const char *name;
    const char *fields;
};

static const struct type_form type_forms[TYPE_NUMBERS] = {
#define TYPE_FORM(name, number, fields) [number] = {#name, fields},
    WIRE_TYPE_MAP(TYPE_FORM)
#undef TYPE_FORM
};

#define TYPE_CHECK(name, number, fields)                                                           \
    static_assert((number) < TYPE_NUMBERS && sizeof(fields) - 1 <= WIRE_FIELDS_KNOWN_MAX &&        \
                      WIRE_FIELDS_KNOWN_MAX <= WIRE_FIELDS_MAX,                                    \
                  "type " #name " fits the table and the message");
WIRE_TYPE_MAP(TYPE_CHECK)
#undef TYPE_CHECK

/* NULL for an unknown type. */
static const struct type_form *find_form(uint32_t type)
{
    return type < TYPE_NUMBERS && type_forms[type].name != NULL ? &type_forms[type] : NULL;
}

const char *wire_type_name(enum wire_type type)
{
    const struct type_form *form = find_form((uint32_t)type);
    return form == NULL ? "?" : form->name;
}

static uint32_t known_flags(uint32_t type)
{
    return type == WIRE_STREAM ? WIRE_FLAG_UNHURRIED : 0;
}

/* ---- fixed-width integers, byte by byte so that neither alignment nor byte order matters ---- */

static uint64_t load_little(const char *p, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned index = bytes; index-- > 0;)
        value = value << 8 | (unsigned char)p[index];
    return value;
}

static void store_little(char *p, uint64_t value, unsigned bytes)
{
    for (unsigned index = 0; index < bytes; index++)
        p[index] = (char)(value >> 8 * index);
}

static uint64_t load_big(const char *p, size_t bytes)
{
    uint64_t value = 0;
    for (size_t index = 0; index < bytes; index++)
        value = value << 8 | (unsigned char)p[index];
    return value;
}

/* ---- encoding ---- */

static size_t number_bytes(uint64_t number)
{
    if (number < 0x80)
        return 1;
    if (number <= UINT8_MAX)
        return 2;
    if (number <= UINT16_MAX)
        return 3;
    return number <= UINT32_MAX ? 5 : NUMBER_BYTES_MAX;
}

static size_t span_bytes(struct span span)
{
    if (span.data == NULL)
        return 1;
    return span.bytes + (span.bytes <= UINT8_MAX ? 2 : span.bytes <= UINT16_MAX ? 3 : 5);
}

static int append_reserved(void *context, const char *data, size_t bytes)
{
    struct buffer *out = context;
    memcpy(out->data + out->bytes, data, bytes);
    out->bytes += bytes;
    return 0;
}

/* The whole frame, or 0 when it is beyond its limit. */
static size_t measure_frame(const struct type_form *form, const struct wire_field *fields)
{
    size_t bytes = WIRE_HEADER_BYTES + 1;
    for (size_t index = 0; form->fields[index] != '\0'; index++) {
        if (form->fields[index] == 'b' && fields[index].span.bytes > WIRE_FRAME_BYTES_MAX)
            return 0;
        bytes += form->fields[index] == 'u' ? number_bytes(fields[index].number)
                                            : span_bytes(fields[index].span);
    }
    return bytes <= WIRE_FRAME_BYTES_MAX ? bytes : 0;
}

enum weir_status wire_append(struct buffer *out, enum wire_type type, uint64_t id,
                             const struct wire_field *fields)
{
    return wire_append_flagged(out, type, 0, id, fields);
}

enum weir_status wire_append_flagged(struct buffer *out, enum wire_type type, uint32_t flags,
                                     uint64_t id, const struct wire_field *fields)
{
    const struct type_form *form = find_form((uint32_t)type);
    weir_assert(form != NULL);
    weir_assert((flags & ~known_flags((uint32_t)type)) == 0);
    size_t frame_bytes = measure_frame(form, fields);
    if (frame_bytes == 0)
        return WEIR_TOO_LARGE;
    enum weir_status status = buffer_reserve(out, frame_bytes);
    if (status != WEIR_OK)
        return status;

    size_t start = out->bytes;
    char *header = out->data + start;
    store_little(header, frame_bytes - LENGTH_BYTES, 4);
    store_little(header + 4, (uint64_t)type, 2);
    store_little(header + 6, flags, 2);
    store_little(header + 8, id, 8);
    out->bytes += WIRE_HEADER_BYTES;

    /* append_reserved() cannot fail, so neither can the packer. */
    msgpack_packer packer;
    msgpack_packer_init(&packer, out, append_reserved);
    (void)msgpack_pack_array(&packer, strlen(form->fields));
    for (size_t index = 0; form->fields[index] != '\0'; index++) {
        struct span span = fields[index].span;
        if (form->fields[index] == 'u') {
            (void)msgpack_pack_uint64(&packer, fields[index].number);
        } else if (span.data == NULL) {
            weir_assert(span.bytes == 0);
            (void)msgpack_pack_nil(&packer);
        } else {
            (void)msgpack_pack_bin(&packer, span.bytes);
            (void)msgpack_pack_bin_body(&packer, span.data, span.bytes);
        }
    }
    weir_assert(out->bytes == start + frame_bytes);
    return WEIR_OK;
}

/* ---- decoding ---- */

struct wire_reader {
    const char *problem;
};

struct wire_reader *wire_reader_open(void)
{
    struct wire_reader *reader = malloc(sizeof *reader);
    if (reader != NULL)
        reader->problem = "";
    return reader;
}

void wire_reader_close(struct wire_reader *reader)
{
    free(reader);
}

const char *wire_reader_problem(const struct wire_reader *reader)
{
    return reader->problem;
}

static enum weir_status refuse(struct wire_reader *reader, enum weir_status status,
                               const char *problem) __attribute__((cold, noinline));
static enum weir_status refuse(struct wire_reader *reader, enum weir_status status,
                               const char *problem)
{
    reader->problem = problem;
    return status;
}

/* One element of the body's array. */
enum element_kind { ELEMENT_NIL, ELEMENT_NUMBER, ELEMENT_NEGATIVE, ELEMENT_SPAN, ELEMENT_OTHER };

struct element {
    enum element_kind kind;
    uint64_t number;
    struct span span;
};

struct cursor {
    const char *p;
    const char *end;
};

/* A big-endian integer of `bytes` bytes; false when fewer are left. */
static inline bool take_big(struct cursor *cursor, size_t bytes, uint64_t *value)
{
    if ((size_t)(cursor->end - cursor->p) < bytes)
        return false;
    *value = load_big(cursor->p, bytes);
    cursor->p += bytes;
    return true;
}

static inline bool take_span(struct cursor *cursor, uint64_t bytes, struct element *element)
{
    if ((uint64_t)(cursor->end - cursor->p) < bytes)
        return false;
    element->kind = ELEMENT_SPAN;
    element->span = span_of(cursor->p, (size_t)bytes);
    cursor->p += bytes;
    return true;
}

static inline bool take_long_span(struct cursor *cursor, size_t length_bytes,
                                  struct element *element)
{
    uint64_t bytes;
    return take_big(cursor, length_bytes, &bytes) && take_span(cursor, bytes, element);
}

static inline bool take_number(struct cursor *cursor, size_t bytes, bool is_signed,
                               struct element *element)
{
    weir_assert(bytes >= 1 && bytes <= 8);
    if (!take_big(cursor, bytes, &element->number))
        return false;
    bool negative = is_signed && (element->number >> (8 * bytes - 1)) != 0;
    element->kind = negative ? ELEMENT_NEGATIVE : ELEMENT_NUMBER;
    return true;
}

static inline bool take_other(struct cursor *cursor, size_t bytes, struct element *element)
{
    if ((size_t)(cursor->end - cursor->p) < bytes)
        return false;
    element->kind = ELEMENT_OTHER;
    cursor->p += bytes;
    return true;
}

/* The next element (the first bytes are those of the msgpack specification's format table); false
 * for a container, an extension, the unused C1, and for an element the frame does not hold whole. */
static inline bool take_element(struct cursor *cursor, struct element *element)
{
    if (cursor->p == cursor->end)
        return false;
    unsigned char head = (unsigned char)*cursor->p++;
    element->number = 0;
    element->span = (struct span){0};
    if (head <= 0x7F) {
        element->kind = ELEMENT_NUMBER;
        element->number = head;
        return true;
    }
    if (head >= 0xE0) {
        element->kind = ELEMENT_NEGATIVE;
        return true;
    }
    if (head >= 0xA0 && head <= 0xBF)
        return take_span(cursor, head & 0x1F, element);
    switch (head) {
    case 0xC0:
        element->kind = ELEMENT_NIL;
        return true;
    case 0xC2: /* false, true */
    case 0xC3:
        return take_other(cursor, 0, element);
    case 0xCA: /* float 32, 64 */
        return take_other(cursor, 4, element);
    case 0xCB:
        return take_other(cursor, 8, element);
    case 0xC4: /* bin 8, 16, 32 */
    case 0xC5:
    case 0xC6:
        return take_long_span(cursor, (size_t)1 << (head - 0xC4), element);
    case 0xD9: /* str 8, 16, 32 */
    case 0xDA:
    case 0xDB:
        return take_long_span(cursor, (size_t)1 << (head - 0xD9), element);
    case 0xCC: /* uint 8, 16, 32, 64 */
    case 0xCD:
    case 0xCE:
    case 0xCF:
        return take_number(cursor, (size_t)1 << (head - 0xCC), false, element);
    case 0xD0: /* int 8, 16, 32, 64 */
    case 0xD1:
    case 0xD2:
    case 0xD3:
        return take_number(cursor, (size_t)1 << (head - 0xD0), true, element);
    default:
        return false;
    }
}

/* The array's head: fixarray, array 16 or array 32. */
static bool take_array(struct cursor *cursor, uint64_t *count)
{
    if (cursor->p == cursor->end)
        return false;
    unsigned char head = (unsigned char)*cursor->p++;
    *count = head & 0x0F;
    if (head >= 0x90 && head <= 0x9F)
        return true;
    if (head == 0xDC || head == 0xDD)
        return take_big(cursor, head == 0xDC ? 2 : 4, count);
    return false;
}

/* Put `element` where the type's field list wants it; false when its kind is not the list's. */
static inline bool store_field(struct wire_field *field, char kind, const struct element *element)
{
    if (element->kind == ELEMENT_NIL)
        return true;
    if (kind == 'u') {
        field->number = element->number;
        return element->kind == ELEMENT_NUMBER;
    }
    field->span = element->span;
    return element->kind == ELEMENT_SPAN;
}

static enum weir_status read_body(struct wire_reader *reader, struct span body, const char *kinds,
                                  struct wire_message *message)
{
    struct cursor cursor = {body.data, body.data + body.bytes};
    uint64_t count;
    if (!take_array(&cursor, &count))
        return refuse(reader, WEIR_CORRUPT, "the body is not an array");
    if (count > WIRE_FIELDS_MAX)
        return refuse(reader, WEIR_CORRUPT, "too many fields");
    for (uint64_t index = 0; index < count; index++) {
        struct element element;
        if (!take_element(&cursor, &element))
            return refuse(reader, WEIR_CORRUPT, "a field is cut, or neither a scalar, str nor bin");
        if (*kinds == '\0')
            continue;
        if (!store_field(&message->fields[index], *kinds++, &element))
            return refuse(reader, WEIR_CORRUPT, "a field has the wrong type");
    }
    if (cursor.p != cursor.end)
        return refuse(reader, WEIR_CORRUPT, "bytes behind the body's array");
    return WEIR_OK;
}

enum weir_status wire_read(struct wire_reader *reader, struct span input,
                           struct wire_message *message, size_t *frame_bytes)
{
    *frame_bytes = 0;
    reader->problem = "";
    if (input.bytes < LENGTH_BYTES)
        return WEIR_EMPTY;
    uint64_t length = load_little(input.data, LENGTH_BYTES);
    if (length < LENGTH_MIN)
        return refuse(reader, WEIR_CORRUPT, "a frame shorter than its header and an empty body");
    if (length > WIRE_FRAME_BYTES_MAX - LENGTH_BYTES)
        return refuse(reader, WEIR_TOO_LARGE, "a frame beyond its limit");
    *frame_bytes = (size_t)length + LENGTH_BYTES;
    if (input.bytes < *frame_bytes)
        return WEIR_EMPTY;

    uint32_t type = (uint32_t)load_little(input.data + 4, 2);
    uint32_t flags = (uint32_t)load_little(input.data + 6, 2);
    if ((flags & ~known_flags(type)) != 0)
        return refuse(reader, WEIR_CORRUPT, "unknown flags");
    const struct type_form *form = find_form(type);
    *message = (struct wire_message){
        .type = (enum wire_type)type, .flags = flags, .id = load_little(input.data + 8, 8)};
    struct span body = span_of(input.data + WIRE_HEADER_BYTES, *frame_bytes - WIRE_HEADER_BYTES);
    return read_body(reader, body, form == NULL ? "" : form->fields, message);
}
