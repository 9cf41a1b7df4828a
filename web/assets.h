/* web/assets.h -- the page's files, compiled into the binary that serves them.
 *
 * Process:  any, any thread; everything here is constant.
 * Memory:   static; paths and types are NUL-terminated, data is not.
 */
#ifndef WEIR_WEB_ASSETS_H
#define WEIR_WEB_ASSETS_H

#include <stddef.h>

struct web_asset {
    const char *path; /* as requested, with the leading '/' */
    const char *content_type;
    const char *data;
    size_t bytes;
};

/* The file served at `path` (percent signs are not decoded; "/" is the page), or NULL. */
const struct web_asset *web_asset_find(const char *path, size_t path_bytes);

#endif
