//! YAML text into a tree that keeps every position and every scalar as typed.
//!
//! It refuses what a recipe has no use for and what makes YAML dangerous: tags,
//! merge keys, several documents, repeated keys, depth, and aliases that grow.
//! Repeated keys are reported and reading goes on; broken syntax ends it.

use std::collections::{HashMap, HashSet};

use serde_saphyr::granit_parser::{
    ErrorKind, Event, Marker, Options, Parser, ScalarStyle, Span, StrInput,
};

use crate::error::{Position, Report, code, shown};

/// Bytes of a recipe file.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Values in a recipe, those that aliases repeat included.
pub const NODES_MAX: usize = 200_000;
/// Collections inside one another.
pub const DEPTH_MAX: usize = 32;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
    /// Values in it, itself included.
    size: usize,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// Text as typed, escapes of quoted text resolved.
#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    /// Neither quoted nor a block: `true`, `7` and `null` mean what YAML says.
    pub(crate) plain: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_at: Position,
    pub(crate) value: Node,
}

impl Node {
    /// The word for its kind, for errors.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar(scalar) if scalar.is_null() => "nothing",
            Value::Scalar(_) => "a single value",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }
}

impl Scalar {
    /// A plain scalar that YAML reads as null.
    pub(crate) fn is_null(&self) -> bool {
        self.plain && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

/// Reads the one document of a recipe. `None` when syntax ends the reading; the
/// report then says why.
pub(crate) fn read(text: &str, report: &mut Report) -> Option<Node> {
    if text.len() > FILE_BYTES_MAX {
        report.add(
            Position::START,
            code::TOO_LARGE,
            format!(
                "the file has `{}` bytes; a recipe has at most {FILE_BYTES_MAX}",
                text.len()
            ),
            "keep data out of the recipe: register it with `ml data add`",
        );
        return None;
    }
    let mut reader = Reader::new(text, report);
    reader.document().ok()
}

/// Reading cannot go on; the report has the reason.
struct Broken;

struct Reader<'t, 'r> {
    parser: Parser<'t, StrInput<'t>>,
    report: &'r mut Report,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'t, 'r> Reader<'t, 'r> {
    fn new(text: &'t str, report: &'r mut Report) -> Self {
        let mut options = Options::default();
        options.set_emit_comments(false);
        options.flow_nesting_limit = DEPTH_MAX;
        options.block_nesting_limit = DEPTH_MAX;
        Self {
            parser: Parser::new_from_str_with_options(text, options),
            report,
            anchors: HashMap::new(),
            nodes: 0,
        }
    }

    fn document(&mut self) -> Result<Node, Broken> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(..) => {}
                Event::StreamEnd => {
                    self.report.add(
                        Position::START,
                        code::SYNTAX,
                        "the recipe is empty; it needs the key `experiment`",
                        "`ml init` writes a commented `train.yaml` to start from",
                    );
                    return Err(Broken);
                }
                event => {
                    let node = self.node(event, span, 0)?;
                    return self.end().map(|()| node);
                }
            }
        }
    }

    fn end(&mut self) -> Result<(), Broken> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::DocumentEnd => {}
                Event::StreamEnd => return Ok(()),
                _ => {
                    self.report.add(
                        position(span.start),
                        code::SYNTAX,
                        "a second YAML document begins here; a recipe file holds one",
                        "remove the line `---`, or put the second recipe into a file of its own",
                    );
                    return Err(Broken);
                }
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Broken> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => {
                self.syntax(*error.marker(), error.kind());
                Err(Broken)
            }
            // Events end with StreamEnd, at which every caller stops.
            None => {
                self.report.add(
                    Position::START,
                    code::SYNTAX,
                    "invalid YAML: the text ends too early",
                    "complete the last line",
                );
                Err(Broken)
            }
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, Broken> {
        let at = position(span.start);
        self.count(1, at)?;
        if depth > DEPTH_MAX {
            self.report.add(
                at,
                code::TOO_LARGE,
                format!("collections are nested too deeply; at most `{DEPTH_MAX}` levels are read"),
                "a recipe needs no more than five levels",
            );
            return Err(Broken);
        }
        let (anchor, tag, value) = match event {
            Event::Alias(id) => return self.alias(id, at),
            Event::Scalar(text, style, anchor, tag) => {
                let scalar = Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                };
                (anchor, tag, Value::Scalar(scalar))
            }
            Event::SequenceStart(_, anchor, tag) => {
                (anchor, tag, Value::Sequence(self.sequence(depth)?))
            }
            Event::MappingStart(_, anchor, tag) => {
                (anchor, tag, Value::Mapping(self.mapping(depth)?))
            }
            other => {
                self.report.add(
                    at,
                    code::SYNTAX,
                    format!("invalid YAML: unexpected {other:?}"),
                    "check the line for a stray `---`, `...`, `&` or `*`",
                );
                return Err(Broken);
            }
        };
        if let Some(tag) = tag {
            let tag = format!("{}{}", tag.original_handle(), tag.suffix());
            self.report.add(
                at,
                code::SYNTAX,
                format!(
                    "the tag `{}` is not read; recipes have no tags",
                    shown(&tag)
                ),
                "remove it; quotes make a value text",
            );
        }
        let size = 1 + match &value {
            Value::Scalar(_) => 0,
            Value::Sequence(items) => items.iter().map(|item| item.size).sum(),
            Value::Mapping(entries) => entries.iter().map(|entry| entry.value.size).sum(),
        };
        let node = Node { at, value, size };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Node>, Broken> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(items);
            }
            items.push(self.node(event, span, depth + 1)?);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Vec<Entry>, Broken> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = HashSet::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Ok(entries);
            }
            let key = self.node(event, span, depth + 1)?;
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            if let Some(entry) = self.entry(key, value, &mut seen) {
                entries.push(entry);
            }
        }
    }

    fn entry(&mut self, key: Node, value: Node, seen: &mut HashSet<String>) -> Option<Entry> {
        let key_at = key.at;
        let Value::Scalar(Scalar { text: name, plain }) = key.value else {
            self.report.add(
                key_at,
                code::WRONG_TYPE,
                format!("a key is a single word, as in `key: value`; this one is {}", key.kind()),
                "check for a stray `?`, `[` or `{` at the start of the line; a value that starts so needs quotes",
            );
            return None;
        };
        if plain && name == "<<" {
            self.report.add(
                key_at,
                code::UNKNOWN_KEY,
                "the merge key `<<` is not read",
                "write the entries out",
            );
            return None;
        }
        if !seen.insert(name.clone()) {
            self.report.add(
                key_at,
                code::DUPLICATE_KEY,
                format!("the key `{}` stands here a second time", shown(&name)),
                "keep one of the two; the later would silently win",
            );
            return None;
        }
        Some(Entry {
            key: name,
            key_at,
            value,
        })
    }

    fn alias(&mut self, id: usize, at: Position) -> Result<Node, Broken> {
        let Some(target) = self.anchors.get(&id) else {
            self.report.add(
                at,
                code::SYNTAX,
                "this alias stands inside what it names",
                "write the value out",
            );
            return Err(Broken);
        };
        let size = target.size;
        let node = Node {
            at,
            ..target.clone()
        };
        self.count(size, at)?;
        Ok(node)
    }

    fn count(&mut self, nodes: usize, at: Position) -> Result<(), Broken> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes <= NODES_MAX {
            return Ok(());
        }
        self.report.add(
            at,
            code::TOO_LARGE,
            format!(
                "the recipe has more than `{NODES_MAX}` values, those repeated by aliases included"
            ),
            "write less, or `random:` instead of long lists in `sweep:`",
        );
        Err(Broken)
    }

    fn syntax(&mut self, mark: Marker, kind: &ErrorKind) {
        let (message, hint) = syntax_fault(kind);
        self.report.add(position(mark), code::SYNTAX, message, hint);
    }
}

fn syntax_fault(kind: &ErrorKind) -> (String, String) {
    let hint = match kind {
        ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation => "indent with spaces",
        ErrorKind::UnknownAnchor => {
            "quote a value that starts with `*`; an alias needs `&name` before it"
        }
        ErrorKind::UnexpectedEofFlowSequence | ErrorKind::ExpectedFlowSequenceSeparator => {
            "close the list with `]`, and put a comma between its items"
        }
        ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofImplicitFlowMapping
        | ErrorKind::ExpectedFlowMappingSeparator => {
            "close the mapping with `}`, and put a comma between its entries"
        }
        ErrorKind::UnclosedFlowCollection { .. } | ErrorKind::MisplacedFlowCollectionEnd => {
            "close each `[` with `]` and each `{` with `}`"
        }
        ErrorKind::UnclosedQuotedScalar => "close the quote",
        ErrorKind::RecursionLimitExceeded => "a recipe needs no more than five levels",
        ErrorKind::InvalidIndentation
        | ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry => {
            "give all keys of one mapping the same indentation"
        }
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            "write `key: value`, with a space after the colon"
        }
        _ => "quote values that hold `: `, ` #`, or start with one of `[]{}*&!%@|>`",
    };
    (format!("invalid YAML: {kind}"), hint.to_owned())
}

fn position(mark: Marker) -> Position {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Position {
        line: number(mark.line().max(1)),
        column: number(mark.col().saturating_add(1)),
    }
}
