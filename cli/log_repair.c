/* `weir log repair --cut-at`: gives up what is behind a place of the log. It says first what that is, and
 * does nothing that nobody agreed to. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/log_command.h"

struct log_loss {
    struct progress progress;
    uint64_t done_bytes, total_bytes;
    char *bytes; /* room for the largest frame */
    uint64_t frames, writes;
    uint64_t last_seq; /* of the frames counted */
    uint64_t first_ms, last_ms;
    uint64_t unreadable_bytes; /* blocks that hold something, but no frame */
    size_t segments_removed;
};

static bool loss_read(struct log_loss *loss, int fd, uint64_t offset, size_t bytes)
{
    size_t done = 0;
    while (done < bytes) { /* each turn reads something, or ends */
        ssize_t got = wal_io_system.read(wal_io_system.context, fd, loss->bytes + done,
                                         bytes - done, offset + done);
        if (got == -EINTR)
            continue;
        if (got <= 0)
            return false;
        done += (size_t)got;
    }
    return true;
}

static bool loss_is_zero(const char *bytes, size_t count)
{
    return count == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0);
}

/* The frame at this place if there is a whole one, whose bytes are returned; else 0. */
static size_t loss_count_frame(struct log_loss *loss, int fd, const struct wal_place *place)
{
    struct wal_frame_header header;
    struct span block = span_of(loss->bytes, WAL_BLOCK_BYTES);
    if (wal_frame_header_decode(block, place, &header) != WEIR_OK ||
        header.payload_bytes > WAL_PAYLOAD_BYTES_MAX)
        return 0;
    size_t frame_bytes = wal_frame_bytes(header.payload_bytes);
    struct span payload;
    if (!loss_read(loss, fd, place->offset, frame_bytes) ||
        wal_frame_body_check(span_of(loss->bytes, frame_bytes), place, &header, &payload) !=
            WEIR_OK)
        return 0;
    if (header.seq <= loss->last_seq) /* written once more, after a failed write */
        return frame_bytes;
    loss->last_seq = header.seq;
    loss->first_ms = loss->frames == 0 ? header.time_ms : loss->first_ms;
    loss->last_ms = header.time_ms;
    loss->frames++;
    loss->writes += header.record_count;
    return frame_bytes;
}

/* Everything from `offset` to the end of a segment. A place without a whole frame is passed over block by
 * block: what is lost is to be told, also behind damage. */
static void loss_count_segment(struct log_loss *loss, int fd, const struct log_file *file,
                               uint64_t offset)
{
    struct wal_file_header header;
    struct wal_place place = {.number = file->number};
    if (loss_read(loss, fd, 0, WAL_BLOCK_BYTES) &&
        wal_file_header_decode(span_of(loss->bytes, WAL_BLOCK_BYTES), &header) == WEIR_OK)
        place.log_id = header.log_id;
    else
        loss->unreadable_bytes +=
            WAL_BLOCK_BYTES; /* without the id no frame can be told from chance */
    uint64_t begun = offset;
    while (offset + WAL_BLOCK_BYTES <= file->bytes) {
        if (!loss_read(loss, fd, offset, WAL_BLOCK_BYTES)) {
            loss->unreadable_bytes += WAL_BLOCK_BYTES;
            offset += WAL_BLOCK_BYTES;
            continue;
        }
        bool is_zero = loss_is_zero(loss->bytes, WAL_BLOCK_BYTES);
        place.offset = offset;
        size_t frame_bytes = is_zero ? 0 : loss_count_frame(loss, fd, &place);
        if (frame_bytes == 0 && !is_zero)
            loss->unreadable_bytes += WAL_BLOCK_BYTES;
        offset += frame_bytes == 0 ? WAL_BLOCK_BYTES : frame_bytes;
        progress_update(&loss->progress, loss->done_bytes + (offset - begun), loss->total_bytes);
    }
    loss->done_bytes += offset - begun;
}

static enum weir_status loss_count(struct log_loss *loss, const struct log_options *options,
                                   const struct log_directory *directory, struct weir_error *error)
{
    for (size_t i = 0; i < directory->file_count; i++) {
        const struct log_file *file = &directory->files[i];
        if (file->kind != WAL_FILE_LOG || file->is_unfinished ||
            file->number < options->cut_segment)
            continue;
        bool is_cut = file->number == options->cut_segment && options->cut_offset > 0;
        char path[WAL_PATH_BYTES];
        wal_path(path, directory->path, WAL_FILE_LOG, file->number);
        int fd = wal_io_system.open(wal_io_system.context, path, O_RDONLY);
        if (fd < 0)
            return weir_fail_errno(error, -fd, "cannot open %.160s", path);
        loss_count_segment(loss, fd, file, is_cut ? options->cut_offset : WAL_BLOCK_BYTES);
        (void)wal_io_system.close(wal_io_system.context, fd);
        loss->segments_removed += !is_cut;
    }
    return WEIR_OK;
}

static const struct log_file *repair_find_segment(const struct log_directory *directory,
                                                  uint64_t number)
{
    for (size_t i = 0; i < directory->file_count; i++) {
        const struct log_file *file = &directory->files[i];
        if (file->kind == WAL_FILE_LOG && !file->is_unfinished && file->number == number)
            return file;
    }
    return NULL;
}

static enum weir_status repair_check_place(const struct log_options *options,
                                           const struct log_directory *directory,
                                           struct weir_error *error)
{
    const struct log_file *file = repair_find_segment(directory, options->cut_segment);
    if (file == NULL)
        return weir_fail(error, WEIR_INVALID, "there is no segment %" PRIu64 " in %.120s",
                         options->cut_segment, directory->path);
    if (options->cut_offset % WAL_BLOCK_BYTES != 0)
        return weir_fail(error, WEIR_INVALID,
                         "offset %" PRIu64 " is not the start of a frame: frames begin at "
                         "multiples of %d; 0 gives up the segment as a whole",
                         options->cut_offset, WAL_BLOCK_BYTES);
    if (options->cut_offset > 0 && options->cut_offset >= file->bytes)
        return weir_fail(error, WEIR_INVALID,
                         "offset %" PRIu64 " is behind the end of the segment, which has %" PRIu64
                         " bytes",
                         options->cut_offset, file->bytes);
    return WEIR_OK;
}

static void repair_print_loss(const struct log_options *options, const struct log_loss *loss)
{
    char name[LOG_FILE_NAME_BYTES];
    log_file_name(name, WAL_FILE_LOG, options->cut_segment);
    if (options->cut_offset > 0)
        (void)printf("cutting      %s at %" PRIu64, name, options->cut_offset);
    else
        (void)printf("removing     %s", name);
    size_t later = loss->segments_removed - (options->cut_offset == 0);
    if (later > 0)
        (void)printf(", and removing %zu later segment%s", later, later == 1 ? "" : "s");
    (void)printf("\n");
    if (loss->frames > 0) {
        char first[LOG_TIME_BYTES];
        char last[LOG_TIME_BYTES];
        log_print_time(first, loss->first_ms);
        log_print_time(last, loss->last_ms);
        (void)printf("lost         %" PRIu64 " writes in %" PRIu64
                     " frames that can be read, written %s to %s UTC\n",
                     loss->writes, loss->frames, first, last);
    } else {
        (void)printf("lost         no write that can be read\n");
    }
    char bytes[PROGRESS_BYTES_TEXT];
    progress_print_bytes(bytes, loss->unreadable_bytes);
    if (loss->unreadable_bytes > 0)
        (void)printf("unreadable   %s there, with whatever was written in them\n", bytes);
    (void)fflush(stdout);
}

static bool repair_is_agreed(const struct log_options *options)
{
    if (options->is_agreed)
        return true;
    if (isatty(STDIN_FILENO) == 1) {
        char answer[8] = "";
        (void)fputs("This cannot be undone; a copy of the directory can. Cut? Type yes: ", stderr);
        if (fgets(answer, sizeof answer, stdin) != NULL && strcmp(answer, "yes\n") == 0)
            return true;
        (void)fputs("weir: nothing was changed\n", stderr);
        return false;
    }
    (void)fputs("weir: nothing was changed; copy the directory, then run this again with --yes\n",
                stderr);
    return false;
}

static enum weir_status repair_look(const struct log_options *options,
                                    const struct log_directory *directory, struct weir_error *error)
{
    struct log_loss loss = {.total_bytes = directory->bytes};
    enum weir_status status = repair_check_place(options, directory, error);
    if (status != WEIR_OK)
        return status;
    loss.bytes = malloc(wal_frame_bytes(WAL_PAYLOAD_BYTES_MAX));
    if (loss.bytes == NULL)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for a frame");
    progress_begin(&loss.progress, "repair", options->is_quiet);
    status = loss_count(&loss, options, directory, error);
    progress_end(&loss.progress);
    free(loss.bytes);
    if (status == WEIR_OK)
        repair_print_loss(options, &loss);
    return status;
}

int log_repair(const struct log_options *options)
{
    struct log_directory directory;
    struct weir_error error = {.status = WEIR_OK};
    enum weir_status status = log_directory_open(&directory, options->directory, &error);
    if (status == WEIR_OK)
        status = repair_look(options, &directory, &error);
    if (status == WEIR_OK && !repair_is_agreed(options)) {
        log_directory_close(&directory);
        return EXIT_FAILED;
    }
    if (status == WEIR_OK)
        status = wal_cut(&wal_io_system, directory.path, options->cut_segment, options->cut_offset,
                         &error);
    if (status == WEIR_OK)
        status = log_directory_refresh(&directory, &error);
    if (status == WEIR_OK)
        status = log_describe(options, &directory, &error);
    log_directory_close(&directory);
    return status == WEIR_OK ? log_flush() : log_fail(&error);
}
