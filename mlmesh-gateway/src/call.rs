//! What a request asks of an engine, as its path says.

/// Kinds of requests, by what their answer tells of the engine's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Tokens one after the other. The first one tells how long the prompt took, if the
    /// answer is a stream.
    Generation,
    /// One answer, with which the work is done: embeddings, ranks, tensors.
    Inference,
    /// No work: lists, health, pages. Nothing is booked for it.
    Other,
}

/// What names of gRPC methods hold that ask for work: KServe's, TorchServe's, TGI's.
const GRPC_WORK: &[&str] = &["Infer", "Predict", "Generate", "Embed"];

/// Of those, what the engine remembers, so that a second one would be another.
const REMEMBERED: &[&str] = &["responses"];

/// Last parts of paths that ask for tokens: OpenAI's, then llama.cpp's, TGI's, Triton's,
/// Anthropic's and Ollama's.
const GENERATIONS: &[&str] = &[
    "completions",
    "responses",
    "completion",
    "generate",
    "generate_stream",
    "messages",
    "chat",
];

impl Call {
    /// Whether the engine remembers a call with this path.
    pub(crate) fn is_remembered(path: &str) -> bool {
        REMEMBERED.contains(&last_part(path))
    }

    /// The kind of a request with this method and path, by whether it has a body.
    pub(crate) fn of(method: &str, path: &str, has_body: bool) -> Call {
        if method != "POST" || !has_body {
            return Call::Other;
        }
        match GENERATIONS.contains(&last_part(path)) {
            true => Call::Generation,
            false => Call::Inference,
        }
    }
}

impl Call {
    /// The kind of a gRPC call. When its answer begins, its work is done.
    pub(crate) fn of_grpc(path: &str) -> Call {
        let method = path.rsplit('/').next().unwrap_or_default();
        match GRPC_WORK.iter().any(|word| method.contains(word)) {
            true => Call::Inference,
            false => Call::Other,
        }
    }
}

fn last_part(path: &str) -> &str {
    let path = path.split('?').next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_what_is_asked_for() {
        for (method, path, has_body, expected) in [
            ("POST", "/v1/chat/completions", true, Call::Generation),
            ("POST", "/v1/completions?a=/b", true, Call::Generation),
            (
                "POST",
                "/v2/models/tiny/generate_stream",
                true,
                Call::Generation,
            ),
            ("POST", "/v1/embeddings", true, Call::Inference),
            ("POST", "/v2/models/tiny/infer", true, Call::Inference),
            ("POST", "/v2/repository/index", false, Call::Other),
            ("GET", "/v1/chat/completions", true, Call::Other),
        ] {
            assert_eq!(Call::of(method, path, has_body), expected, "{path}");
        }
        let service = "/inference.GRPCInferenceService";
        for (method, expected) in [
            ("ModelInfer", Call::Inference),
            ("ModelStreamInfer", Call::Inference),
            ("ModelReady", Call::Other),
        ] {
            assert_eq!(Call::of_grpc(&format!("{service}/{method}")), expected);
        }
    }
}
