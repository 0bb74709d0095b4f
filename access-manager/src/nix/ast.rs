//! The expression tree that the evaluator walks: the parser's tree without comments and without syntactic sugar.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::diag::Span;

pub type Sym = Rc<str>;
pub type ExprRef = Rc<Expr>;

#[derive(Debug)]
pub struct Expr {
    pub span: Span,
    pub kind: Kind,
}

#[derive(Debug)]
pub enum Kind {
    Int(i64),
    Float(f64),
    Str(Rc<str>),
    Interpolated(Vec<Part>),
    /// A path relative to the directory of its file, in literal and computed pieces.
    Path(Vec<Part>),
    Var(Sym),
    Select {
        base: ExprRef,
        path: Vec<Name>,
        or: Option<ExprRef>,
    },
    Has {
        base: ExprRef,
        path: Vec<Name>,
    },
    Lambda(Rc<Lambda>),
    Call(ExprRef, ExprRef),
    If(ExprRef, ExprRef, ExprRef),
    With(ExprRef, ExprRef),
    Assert(ExprRef, ExprRef),
    Let(AttrSet, ExprRef),
    Attrs(AttrSet),
    List(Vec<ExprRef>),
    Not(ExprRef),
    Negate(ExprRef),
    Binary(Op, ExprRef, ExprRef),
}

#[derive(Debug)]
pub enum Part {
    Text(Rc<str>),
    Expr(ExprRef),
}

/// One step of an attribute path.
#[derive(Debug)]
pub enum Name {
    Known(Sym, Span),
    Computed(ExprRef),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Concat,
    Update,
    Equal,
    NotEqual,
    Less,
    LessEq,
    More,
    MoreEq,
    And,
    Or,
    Implies,
}

#[derive(Debug, Default)]
pub struct AttrSet {
    pub recursive: bool,
    pub known: BTreeMap<Sym, Attr>,
    pub computed: Vec<(ExprRef, ExprRef)>,
}

#[derive(Debug)]
pub struct Attr {
    /// The position of the name.
    pub span: Span,
    /// Whether the value is evaluated in the scope around the set, even if the set is recursive (`inherit x;`).
    pub outer: bool,
    pub value: ExprRef,
}

#[derive(Debug)]
pub struct Lambda {
    pub param: Param,
    pub body: ExprRef,
}

#[derive(Debug)]
pub enum Param {
    Name(Sym),
    Formals { formals: Vec<Formal>, open: bool, whole: Option<Sym> },
}

#[derive(Debug)]
pub struct Formal {
    pub name: Sym,
    pub default: Option<ExprRef>,
}
