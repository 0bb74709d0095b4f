//! Turns the parser's tree into that of [`super::ast`]: merges `a.b = …; a.c = …;`, finds duplicates, unescapes
//! strings.

use std::collections::BTreeMap;
use std::rc::Rc;

use rnix::ast::{self, AstNode, AstToken, HasEntry, InterpolPart};

use super::ast::*;
use super::text;
use crate::diag::{Class, Fault, Span, quoted};

type R<T> = Result<T, Fault>;

/// Parses one file.
pub fn parse(file: u32, text: &str) -> R<ExprRef> {
    text::check_nesting(file, text)?;
    let parse = rnix::Root::parse(text);
    if let Some(error) = parse.errors().first() {
        return Err(text::syntax_fault(file, text, error));
    }
    let lower = Lower { file };
    match parse.tree().expr() {
        Some(expr) => lower.expr(&expr),
        None => Err(Fault::new(Class::Syntax, "the file is empty").expected("a Nix expression")),
    }
}

struct Lower {
    file: u32,
}

// Both methods belong to a trait of rowan, which rnix re-exports under the name `AstNode`.
fn children<N: AstNode>(node: &N) -> rnix::SyntaxElementChildren {
    node.syntax().children_with_tokens()
}

fn node_of<N: AstNode>(node: rnix::SyntaxNode) -> Option<N> {
    N::cast(node)
}

/// An attribute of a set that is still being made: `a.b = …; a.c = …;` adds to a nested set one name at a time.
enum Draft {
    Value { span: Span, outer: bool, value: ExprRef },
    Set { span: Span, set: DraftSet },
}

#[derive(Default)]
struct DraftSet {
    span: Option<Span>,
    recursive: bool,
    known: BTreeMap<Sym, Draft>,
    computed: Vec<(ExprRef, Draft)>,
}

impl Lower {
    fn span<N: AstNode>(&self, node: &N) -> Span {
        let range = node.syntax().text_range();
        Span { file: self.file, start: range.start().into(), end: range.end().into() }
    }

    fn need<N: AstNode, T>(&self, parent: &N, part: Option<T>) -> R<T> {
        // The parser has reported a missing part already. This error is for a case that it may overlook.
        part.ok_or_else(|| Fault::new(Class::Syntax, "this expression is incomplete").at(self.span(parent)))
    }

    fn sub<N: AstNode>(&self, parent: &N, part: Option<ast::Expr>) -> R<ExprRef> {
        self.expr(&self.need(parent, part)?)
    }

    fn ident<N: AstNode>(&self, node: &N) -> Sym {
        node.syntax().text().to_string().trim().into()
    }

    fn unsupported<T, N: AstNode>(&self, node: &N, what: &str, hint: &str) -> R<T> {
        Err(Fault::new(Class::Unsupported, format!("{what} is not supported here"))
            .at(self.span(node))
            .hint(hint))
    }

    fn expr(&self, node: &ast::Expr) -> R<ExprRef> {
        let span = self.span(node);
        let kind = match node {
            ast::Expr::Paren(p) => return self.sub(p, p.expr()),
            ast::Expr::Root(r) => return self.sub(r, r.expr()),
            ast::Expr::Literal(l) => self.literal(l, span)?,
            ast::Expr::Str(s) => self.string(s)?,
            ast::Expr::Ident(i) => Kind::Var(self.ident(i)),
            ast::Expr::Apply(a) => Kind::Call(self.sub(a, a.lambda())?, self.sub(a, a.argument())?),
            ast::Expr::Assert(a) => Kind::Assert(self.sub(a, a.condition())?, self.sub(a, a.body())?),
            ast::Expr::With(w) => Kind::With(self.sub(w, w.namespace())?, self.sub(w, w.body())?),
            ast::Expr::IfElse(i) => {
                Kind::If(self.sub(i, i.condition())?, self.sub(i, i.body())?, self.sub(i, i.else_body())?)
            }
            ast::Expr::Select(s) => Kind::Select {
                base: self.sub(s, s.expr())?,
                path: self.attrpath(&self.need(s, s.attrpath())?)?,
                or: s.default_expr().map(|e| self.expr(&e)).transpose()?,
            },
            ast::Expr::HasAttr(h) => {
                Kind::Has { base: self.sub(h, h.expr())?, path: self.attrpath(&self.need(h, h.attrpath())?)? }
            }
            ast::Expr::Lambda(l) => Kind::Lambda(Rc::new(self.lambda(l)?)),
            ast::Expr::LetIn(l) => {
                let set = self.entries(l, true)?;
                if let Some((name, _)) = set.computed.first() {
                    return Err(
                        Fault::new(Class::Syntax, "a computed name is not allowed in `let`").at(name.span)
                    );
                }
                Kind::Let(self.finish(set), self.sub(l, l.body())?)
            }
            ast::Expr::AttrSet(a) => {
                let recursive = a.rec_token().is_some();
                Kind::Attrs(self.finish(self.entries(a, recursive)?))
            }
            ast::Expr::List(l) => Kind::List(l.items().map(|e| self.expr(&e)).collect::<R<_>>()?),
            ast::Expr::UnaryOp(u) => {
                let operand = self.sub(u, u.expr())?;
                match self.need(u, u.operator())? {
                    ast::UnaryOpKind::Invert => Kind::Not(operand),
                    ast::UnaryOpKind::Negate => Kind::Negate(operand),
                }
            }
            ast::Expr::BinOp(b) => self.binary(b)?,
            ast::Expr::PathRel(p) => self.path(p)?,
            ast::Expr::PathAbs(p) => {
                let text = p.to_string();
                return Err(Fault::new(
                    Class::Outside,
                    format!("the path {} leaves the repository", quoted(&text)),
                )
                .at(span)
                .expected("a path relative to this file, such as ./keys/alice.pub")
                .found("an absolute path"));
            }
            ast::Expr::PathHome(p) => {
                return self.unsupported(p, "a path in somebody's home", "use a path relative to this file");
            }
            ast::Expr::PathSearch(p) => {
                let text = p.to_string();
                return self.unsupported(
                    p,
                    &format!("the search path {}", quoted(&text)),
                    "there is no NIX_PATH here; for the usual helpers start the file with `{ lib, ... }:`",
                );
            }
            ast::Expr::LegacyLet(l) => {
                return self.unsupported(l, "the old `let { … }`", "write `let … in …`");
            }
            ast::Expr::CurPos(c) => return self.unsupported(c, "`__curPos`", "remove it"),
            ast::Expr::Error(e) => {
                return Err(Fault::new(Class::Syntax, "this is not valid Nix").at(self.span(e)));
            }
        };
        Ok(Rc::new(Expr { span, kind }))
    }

    fn literal(&self, node: &ast::Literal, span: Span) -> R<Kind> {
        let bad = || Fault::new(Class::Syntax, "this number does not fit in 64 bits").at(span);
        Ok(match node.kind() {
            ast::LiteralKind::Integer(i) => Kind::Int(i.value().map_err(|_| bad())?),
            ast::LiteralKind::Float(f) => Kind::Float(f.value().map_err(|_| bad())?),
            ast::LiteralKind::Uri(u) => Kind::Str(u.syntax().text().into()),
        })
    }

    fn string(&self, node: &ast::Str) -> R<Kind> {
        let indented = node.to_string().starts_with("''");
        let mut parts = Vec::new();
        if indented {
            for part in node.normalized_parts() {
                self.push_part(&mut parts, part)?;
            }
        } else {
            for part in node.parts() {
                let part = match part {
                    InterpolPart::Literal(token) => InterpolPart::Literal(unescape(token.syntax().text())),
                    InterpolPart::Interpolation(i) => InterpolPart::Interpolation(i),
                };
                self.push_part(&mut parts, part)?;
            }
        }
        Ok(match parts.as_slice() {
            [] => Kind::Str("".into()),
            [Part::Text(text)] => Kind::Str(text.clone()),
            _ => Kind::Interpolated(parts),
        })
    }

    fn push_part(&self, parts: &mut Vec<Part>, part: InterpolPart<String>) -> R<()> {
        parts.push(match part {
            InterpolPart::Literal(text) if text.is_empty() => return Ok(()),
            InterpolPart::Literal(text) => Part::Text(text.into()),
            InterpolPart::Interpolation(i) => Part::Expr(self.sub(&i, i.expr())?),
        });
        Ok(())
    }

    /// Not by rnix's own `parts`, which panics at `./keys ${name}`: it accepts the space and makes it a token of the path.
    fn path(&self, node: &ast::PathRel) -> R<Kind> {
        let mut parts = Vec::new();
        for piece in children(node) {
            let content = piece.as_token().cloned().and_then(ast::PathContent::cast);
            let interpolation = piece.as_node().cloned().and_then(node_of::<ast::Interpol>);
            parts.push(match (content, interpolation) {
                (Some(token), _) => Part::Text(token.text().into()),
                (None, Some(i)) => Part::Expr(self.sub(&i, i.expr())?),
                (None, None) => {
                    return Err(Fault::new(Class::Syntax, "this path is not valid Nix")
                        .at(self.span(node))
                        .expected("letters, digits, `.`, `_`, `-`, `+`, `/` and `${…}`, without spaces")
                        .hint("for a file with other characters in its name write `./. + \"/the name\"`"));
                }
            });
        }
        Ok(Kind::Path(parts))
    }

    fn binary(&self, node: &ast::BinOp) -> R<Kind> {
        use ast::BinOpKind as B;
        let (left, right) = (self.sub(node, node.lhs())?, self.sub(node, node.rhs())?);
        let op = match self.need(node, node.operator())? {
            B::Add => Op::Add,
            B::Sub => Op::Sub,
            B::Mul => Op::Mul,
            B::Div => Op::Div,
            B::Concat => Op::Concat,
            B::Update => Op::Update,
            B::Equal => Op::Equal,
            B::NotEqual => Op::NotEqual,
            B::Less => Op::Less,
            B::LessOrEq => Op::LessEq,
            B::More => Op::More,
            B::MoreOrEq => Op::MoreEq,
            B::And => Op::And,
            B::Or => Op::Or,
            B::Implication => Op::Implies,
            B::PipeRight | B::PipeLeft => {
                return self.unsupported(node, "the experimental pipe operator", "call the function: `f x`");
            }
        };
        Ok(Kind::Binary(op, left, right))
    }

    fn lambda(&self, node: &ast::Lambda) -> R<Lambda> {
        let param = match self.need(node, node.param())? {
            ast::Param::IdentParam(i) => Param::Name(self.ident(&self.need(&i, i.ident())?)),
            ast::Param::Pattern(p) => self.pattern(&p)?,
        };
        Ok(Lambda { param, body: self.sub(node, node.body())? })
    }

    fn pattern(&self, node: &ast::Pattern) -> R<Param> {
        let whole = node.pat_bind().map(|b| Ok(self.ident(&self.need(&b, b.ident())?))).transpose()?;
        let mut formals: Vec<Formal> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for entry in node.pat_entries() {
            let ident = self.need(&entry, entry.ident())?;
            let name = self.ident(&ident);
            if whole.as_ref() == Some(&name) || !seen.insert(name.clone()) {
                return Err(Fault::new(
                    Class::Syntax,
                    format!("the argument {} is named twice", quoted(&name)),
                )
                .at(self.span(&ident)));
            }
            // With a default the entry has two expressions: the name itself, then the default.
            let default = match entry.question_token() {
                Some(_) => Some(self.sub(&entry, entry.default())?),
                None => None,
            };
            formals.push(Formal { name, default });
        }
        Ok(Param::Formals { formals, open: node.ellipsis_token().is_some(), whole })
    }

    fn attrpath(&self, node: &ast::Attrpath) -> R<Vec<Name>> {
        node.attrs().map(|attr| self.name(&attr)).collect()
    }

    fn name(&self, attr: &ast::Attr) -> R<Name> {
        let span = self.span(attr);
        Ok(match attr {
            ast::Attr::Ident(i) => Name::Known(self.ident(i), span),
            ast::Attr::Dynamic(d) => {
                let expr = self.sub(d, d.expr())?;
                match &expr.kind {
                    Kind::Str(text) => Name::Known(text.clone(), span),
                    _ => Name::Computed(expr),
                }
            }
            ast::Attr::Str(s) => match self.string(s)? {
                Kind::Str(text) => Name::Known(text, span),
                kind => Name::Computed(Rc::new(Expr { span, kind })),
            },
        })
    }

    fn entries<N: HasEntry>(&self, node: &N, recursive: bool) -> R<DraftSet> {
        let mut set = DraftSet { span: Some(self.span(node)), recursive, ..DraftSet::default() };
        for entry in node.entries() {
            match entry {
                ast::Entry::Inherit(i) => self.inherit(&mut set, &i)?,
                ast::Entry::AttrpathValue(a) => {
                    let path = self.attrpath(&self.need(&a, a.attrpath())?)?;
                    let value = self.need(&a, a.value())?;
                    self.define(&mut set, path, &value)?;
                }
            }
        }
        Ok(set)
    }

    fn inherit(&self, set: &mut DraftSet, node: &ast::Inherit) -> R<()> {
        let from = match node.from() {
            Some(from) => Some(self.sub(&from, from.expr())?),
            None => None,
        };
        for attr in node.attrs() {
            let Name::Known(name, span) = self.name(&attr)? else {
                return self.unsupported(
                    &attr,
                    "a computed name after `inherit`",
                    "write `name = set.${name};`",
                );
            };
            let kind = match &from {
                Some(base) => {
                    Kind::Select { base: base.clone(), path: vec![Name::Known(name.clone(), span)], or: None }
                }
                None => Kind::Var(name.clone()),
            };
            let draft = Draft::Value { span, outer: from.is_none(), value: Rc::new(Expr { span, kind }) };
            self.insert(set, name, draft)?;
        }
        Ok(())
    }

    /// Adds `a.b.c = value;`.
    fn define(&self, set: &mut DraftSet, path: Vec<Name>, value: &ast::Expr) -> R<()> {
        let mut draft = self.draft(value, &path)?;
        let mut path = path.into_iter();
        let Some(first) = path.next() else {
            return Err(Fault::new(Class::Syntax, "an attribute without a name").at(self.span(value)));
        };
        let rest: Vec<Name> = path.collect();
        for name in rest.into_iter().rev() {
            let mut inner = DraftSet::default();
            let span = match &name {
                Name::Known(_, span) => *span,
                Name::Computed(e) => e.span,
            };
            inner.span = Some(span);
            match name {
                Name::Known(name, _) => {
                    inner.known.insert(name, draft);
                }
                Name::Computed(e) => inner.computed.push((e, draft)),
            }
            draft = Draft::Set { span, set: inner };
        }
        match first {
            Name::Known(name, span) => {
                let draft = match draft {
                    Draft::Set { set, .. } => Draft::Set { span, set },
                    value => value,
                };
                self.insert(set, name, draft)
            }
            Name::Computed(e) => {
                set.computed.push((e, draft));
                Ok(())
            }
        }
    }

    fn draft(&self, value: &ast::Expr, path: &[Name]) -> R<Draft> {
        let span = match path.last() {
            Some(Name::Known(_, span)) => *span,
            Some(Name::Computed(e)) => e.span,
            None => self.span(value),
        };
        Ok(match value {
            ast::Expr::AttrSet(a) => Draft::Set { span, set: self.entries(a, a.rec_token().is_some())? },
            other => Draft::Value { span, outer: false, value: self.expr(other)? },
        })
    }

    fn insert(&self, set: &mut DraftSet, name: Sym, draft: Draft) -> R<()> {
        match (set.known.remove(&name), draft) {
            (None, draft) => {
                set.known.insert(name, draft);
                Ok(())
            }
            (Some(Draft::Set { span, set: mut old }), Draft::Set { set: new, .. }) => {
                for (key, value) in new.known {
                    self.insert(&mut old, key, value)?;
                }
                old.computed.extend(new.computed);
                set.known.insert(name, Draft::Set { span, set: old });
                Ok(())
            }
            (Some(old), new) => Err(Fault::new(Class::Syntax, format!("{} is defined twice", quoted(&name)))
                .at(new.span())
                .expected("each attribute once")
                .note("the first one is here", Some(old.span()))
                .hint("remove one of them; if these are two people, the later one needs another name")),
        }
    }

    fn finish(&self, set: DraftSet) -> AttrSet {
        AttrSet {
            recursive: set.recursive,
            known: set.known.into_iter().map(|(name, draft)| (name, self.close(draft))).collect(),
            computed: set.computed.into_iter().map(|(name, draft)| (name, self.close(draft).value)).collect(),
        }
    }

    fn close(&self, draft: Draft) -> Attr {
        match draft {
            Draft::Value { span, outer, value } => Attr { span, outer, value },
            Draft::Set { span, set } => {
                let whole = set.span.unwrap_or(span);
                let value = Rc::new(Expr { span: whole, kind: Kind::Attrs(self.finish(set)) });
                Attr { span, outer: false, value }
            }
        }
    }
}

impl Draft {
    fn span(&self) -> Span {
        match self {
            Draft::Value { span, .. } | Draft::Set { span, .. } => *span,
        }
    }
}

/// The text of a `"…"` string. Every kind of line break becomes `\n` (Nix: src/libexpr/lexer.l, unescapeStr).
fn unescape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut chars = raw.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                Some(other) => out.push(other),
                None => {}
            },
            '\r' => {
                chars.next_if_eq(&'\n');
                out.push('\n');
            }
            c => out.push(c),
        }
    }
    out
}
