//! The strings of a derivation reach its builder byte for byte, as at home: strings that are not text, and
//! structured attributes in Nix's form.

use e2e::clients::Stock;
use e2e::drv::{Drv, quoted};

use crate::Alice;
use crate::derivations::{PROGRAMS, same_as_at_home};

pub fn bytes_that_are_no_text_reach_the_builder(stock: Stock) {
    let alice = Alice::with(stock);
    let read = "(builtins.readFile /root/bytes)";
    let bytes = b"D\xfcsseldorf \xfe\xed\xfa\xce \x80\"\\\n";
    // Another machine builds at home.
    let home = alice.other_machine();
    for machine in [&alice.nix, &home] {
        std::fs::write(machine.home().join("bytes"), bytes).expect("a file");
    }
    let drv = |name: &str, script: &str| Drv::new(name, &format!("{PROGRAMS} {script}"));
    let variable = drv("variable", r#"printf %s "$text" > $out"#).attribute("text", read);
    let file = drv("file", "cat $textPath > $out").attribute("text", read);
    let file = file.attribute("passAsFile", "[ \"text\" ]");
    let argument = format!(
        "(derivation {{ name = \"argument\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; \
         args = [ \"-ec\" {} \"sh\" {read} ]; }})",
        quoted(&format!("{PROGRAMS} printf %s \"$1\" > $out"))
    );
    let placeholder = drv("beside", r#"printf %s "$text" > $out"#)
        .attribute("text", &format!("({read} + placeholder \"out\" + {read})"));
    for expression in [variable.expr(), file.expr(), argument, placeholder.expr()] {
        crate::derivations::same_as_built_by(&home, &alice, &expression);
    }
    // Also in a builder's output.
    let says = drv("says", r#"printf '%s\n' "$text"; false"#).attribute("text", read);
    for mut way in alice.ways_to_build(&says.expr()) {
        e2e::process::run(&mut way).failed().says(&["sseldorf"]);
    }
}

/// Keeps the files unchanged. With the shell alone: there is no `sed` at home.
const KEEP: &str = r#"read -r json < .attrs.json || :; json=${json#*'"outputs":{"out":"'}; out=${json%%'"'*}; mkdir $out; cp .attrs.json .attrs.sh $out"#;

fn with_json(name: &str, json: &str) -> String {
    Drv::new(name, &format!("{PROGRAMS} {KEEP}")).attribute("__json", &quoted(json)).expr()
}

pub fn structured_attributes_are_written_as_at_home(stock: Stock) {
    let alice = Alice::with(stock);
    let deep = format!("{}1.50{}", "[".repeat(60), "]".repeat(60));
    let odd = [
        r#""a":1.0,"b":-0,"c":-0.0,"d":1e2,"e":1E-7,"f":18446744073709551615,"g":18446744073709551616"#,
        r#""h":-9223372036854775809,"i":-9223372036854775808,"j":0.1,"k":5e-324,"l":1.7976931348623157e308"#,
        r#""m":1e14,"n":1e15,"o":123456.789e3,"p":1e-4,"q":1e-5,"r":16777217.5,"s":1e300,"t":1e-400,"u":-1.50"#,
        r#""ints":[1,-2,4294967297,3000000000,2147483648,1e9,1e10,-1e10],"parts":[1,2.5],"none":[],"no":{}"#,
        r#""same":1,"same":2,"Z":1,"a-b":1,"1a":1,"_":1,"é":"é","empty":"""#,
        r#""text":"\u00e9\u0001\u001f\u007f\u2028\ud83d\ude00\/\b\f\n\r\t\"\\'","null":null,"yes":true,"off":false"#,
        r#""map":{"x y":"a'b","z":null,"t":true,"f":false,"n":7},"maps":{"a":{"b":1}},"lists":[["a"],{}]"#,
    ];
    same_as_at_home(&alice, &with_json("odd", &format!("{{ {}, \"deep\" : {deep} }}", odd.join(" ,\t"))));

    // Numbers of every size, from a generator with a fixed seed.
    let mut bits = 88_172_645_463_325_252_u64;
    let mut next = || {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        bits
    };
    let mut numbers = Vec::new();
    while numbers.len() < 2_000 {
        let (any, digits, small) = (f64::from_bits(next()), next() as f64 / 1e9, next() % 100_000);
        if any.is_finite() {
            numbers.extend([format!("{any:e}"), format!("{digits:.4}"), format!("{small}e-3")]);
        }
    }
    same_as_at_home(&alice, &with_json("numbers", &format!("{{\"list\":[{}]}}", numbers.join(","))));

    let plain = Drv::new("plain", &format!("{PROGRAMS} {KEEP}"))
        .attribute("__structuredAttrs", "true")
        .attribute("numbers", "[ 1 1.0 0.1 1.0e-7 1.0e16 (1.0 / 3) 100000000000000000000.0 (-5) ]")
        .attribute("own", "\"${placeholder \"out\"} it's\"")
        .attribute("attrs", "{ a = 1.5; b = true; c = null; }");
    same_as_at_home(&alice, &plain.expr());
}
