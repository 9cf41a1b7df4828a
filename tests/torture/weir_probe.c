#include "tests/torture/weir_probe.h"

#include <stdlib.h>
#include <string.h>

#include "broker/wal_recovery.h"

struct reading {
    struct weir_probe *probe;
    bool is_truth;
    size_t count;
    uint64_t sum;
    bool is_different; /* a record that was not there before */
};

static uint64_t mix(uint64_t sum, const void *data, size_t bytes)
{
    const unsigned char *at = data;
    sum = (sum ^ bytes) * 0x9e3779b97f4a7c15ull;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        sum = (sum ^ word) * 0xd1342543de82ef95ull;
        sum ^= sum >> 29;
    }
    for (; bytes > 0; bytes--, at++)
        sum = (sum ^ *at) * 0x100000001b3ull;
    return sum ^ sum >> 32;
}

static uint64_t mix_span(uint64_t sum, struct span span)
{
    sum = (sum ^ (span.data != NULL)) * 0x100000001b3ull;
    return mix(sum, span.data, span.bytes);
}

static uint64_t record_sum(uint64_t sum, const struct wal_record *record)
{
    const uint64_t numbers[] = {record->kind,        record->event,   record->step,
                                record->epoch,       record->seq,     record->timestamp_ms,
                                record->origin,      record->request, record->created_seq,
                                record->modified_seq};
    sum = mix(sum, numbers, sizeof numbers);
    sum = mix_span(sum, record->stream);
    sum = mix_span(sum, record->group);
    sum = mix_span(sum, record->item);
    sum = mix_span(sum, record->event_type);
    return mix_span(sum, record->value);
}

static enum weir_status take(void *context, const struct wal_position *position,
                             const struct wal_record *record, struct weir_error *error)
{
    struct reading *reading = context;
    struct weir_probe *probe = reading->probe;
    (void)position;
    reading->sum = record_sum(reading->sum, record);
    if (!reading->is_truth) {
        if (reading->count >= probe->count || probe->sums[reading->count] != reading->sum)
            reading->is_different = true;
        reading->count++;
        return WEIR_OK;
    }
    if (probe->count == probe->capacity) {
        size_t capacity = probe->capacity ? 2 * probe->capacity : 4096;
        uint64_t *larger = realloc(probe->sums, capacity * sizeof *larger);
        if (!larger)
            return weir_fail(error, WEIR_NO_MEMORY, "no memory for the records");
        probe->sums = larger;
        probe->capacity = capacity;
    }
    probe->sums[probe->count++] = reading->sum;
    return WEIR_OK;
}

static enum weir_status read_directory(struct campaign *campaign, struct reading *reading,
                                       struct wal_recovered *recovered, struct weir_error *error)
{
    const struct wal_recovery_options options = {.io = &wal_io_system,
                                                 .directory = campaign->subject.directory,
                                                 .take = take,
                                                 .context = reading};
    return wal_recover(&options, recovered, error);
}

/* The remains of an interrupted write are nothing to anybody. */
static void pass_over_cut(struct image *image, const struct wal_recovered *recovered)
{
    char path[WAL_PATH_BYTES];
    if (recovered->cut_bytes == 0)
        return;
    wal_path(path, "", WAL_FILE_LOG, recovered->cut_segment);
    for (unsigned index = 0; index < image->count; index++) {
        struct image_file *file = &image->files[index];
        if (strcmp(file->name, path + 1) == 0 && file->used_bytes > recovered->cut_offset)
            file->used_bytes = recovered->cut_offset;
    }
}

bool weir_probe_truth(struct campaign *campaign, struct image *image)
{
    struct weir_probe *probe = campaign->own;
    struct reading reading = {.probe = probe, .is_truth = true};
    struct wal_recovered recovered;
    struct weir_error error = {0};
    probe->count = 0;
    if (!image_write(image, campaign->subject.directory, NULL) ||
        read_directory(campaign, &reading, &recovered, &error) != WEIR_OK)
        return false;
    probe->cut_bytes = recovered.cut_bytes;
    pass_over_cut(image, &recovered);
    return true;
}

enum damage_outcome weir_probe_run(struct campaign *campaign, const struct image *image,
                                   const struct damage *damage, char why[192])
{
    struct weir_probe *probe = campaign->own;
    struct reading reading = {.probe = probe};
    struct wal_recovered recovered;
    struct weir_error error = {0};
    why[0] = 0;
    if (!image_spoil(image, campaign->subject.directory, damage))
        return OUTCOME_SILENT;
    enum weir_status status = read_directory(campaign, &reading, &recovered, &error);
    if (!image_mend(image, campaign->subject.directory, damage))
        return OUTCOME_SILENT;
    (void)snprintf(why, 192, "%.180s", status == WEIR_OK ? "" : error.text);
    if (status != WEIR_OK)
        return strstr(error.text, image->files[damage->file].name) ? OUTCOME_REFUSED
                                                                   : OUTCOME_UNNAMED;
    if (reading.is_different)
        return OUTCOME_INVENTED;
    if (recovered.cut_bytes != probe->cut_bytes)
        return OUTCOME_TOLD;
    return reading.count == probe->count ? OUTCOME_SAME : OUTCOME_SILENT;
}

void weir_probe_fini(struct weir_probe *probe)
{
    free(probe->sums);
    *probe = (struct weir_probe){0};
}
