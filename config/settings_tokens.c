/* One block of text and where each token and context lies in it. Offsets, because the block moves
 * while it grows. */
#include <stdlib.h>

#include "config/settings_value.h"

struct settings_token_place {
    size_t token_offset, token_bytes;
    size_t context_offset, context_bytes;
};

struct settings_tokens {
    struct buffer text;
    size_t count;
    struct settings_token_place places[SETTINGS_TOKENS_MAX];
};

struct settings_tokens *settings_tokens_open(void)
{
    struct settings_tokens *tokens = calloc(1, sizeof *tokens);
    if (tokens != NULL)
        buffer_init(&tokens->text, SETTINGS_TOKENS_BYTES_MAX);
    return tokens;
}

void settings_tokens_close(struct settings_tokens *tokens)
{
    if (tokens == NULL)
        return;
    buffer_fini(&tokens->text);
    free(tokens);
}

static struct settings_token settings_tokens_at(const struct settings_tokens *tokens, size_t index)
{
    const struct settings_token_place *place = &tokens->places[index];
    const char *text = tokens->text.data;
    return (struct settings_token){
        .token = span_of(text + place->token_offset, place->token_bytes),
        .context = span_of(text + place->context_offset, place->context_bytes),
    };
}

enum weir_status settings_tokens_add(struct settings_tokens *tokens, struct span token,
                                     struct span context)
{
    if (tokens->count == SETTINGS_TOKENS_MAX || token.bytes > SETTINGS_TOKEN_BYTES_MAX ||
        context.bytes > SETTINGS_CONTEXT_BYTES_MAX)
        return WEIR_FULL;
    for (size_t i = 0; i < tokens->count; i++) {
        if (span_equal(settings_tokens_at(tokens, i).token, token))
            return WEIR_INVALID;
    }
    struct settings_token_place place = {
        .token_offset = tokens->text.bytes,
        .token_bytes = token.bytes,
        .context_offset = tokens->text.bytes + token.bytes,
        .context_bytes = context.bytes,
    };
    enum weir_status status = buffer_append(&tokens->text, token);
    if (status == WEIR_OK)
        status = buffer_append(&tokens->text, context);
    if (status != WEIR_OK)
        return status;
    tokens->places[tokens->count++] = place;
    return WEIR_OK;
}

size_t settings_token_count(const struct settings *settings)
{
    return settings->auth_tokens == NULL ? 0 : settings->auth_tokens->count;
}

struct settings_token settings_token_at(const struct settings *settings, size_t index)
{
    return settings_tokens_at(settings->auth_tokens, index);
}

void settings_fini(struct settings *settings)
{
    settings_tokens_close(settings->auth_tokens);
    settings->auth_tokens = NULL;
    settings_streams_close(settings->streams);
    settings->streams = NULL;
}
