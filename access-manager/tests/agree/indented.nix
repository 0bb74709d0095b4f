let
  x = "X";
  many = "1\n2\n";
in
{
  plain = ''one'';
  empty = '''';
  firstLine = ''first
    second
      third
  '';
  usual = ''
    one
      two
    three
  '';
  noFinal = ''
    one
    two'';
  blankLines = ''

    one

    two

  '';
  blankWithSpaces = ''
    one
  
      two
  '';
  interpolated = ''
    a ${x} b
      ${x}
    ${many}end
  '';
  startsWithInterpolation = ''
      ${x}
    less
  '';
  onlyInterpolation = ''${x}'';
  escapes = ''
    quotes ''' dollar ''${x} newline''\nend tab''\t$$ $x ''\${x}
  '';
  escapeFirst = ''
    ''\tindented
      more
  '';
  spacesOnly = ''   '';
  oneSpaceLine = ''
   '';
  deep = ''
        a
      b
    c
  '';
  tab = ''
    	tab after four
    x
  '';
  key = ''
    ssh-ed25519 AAAA one
    # comment
    ssh-ed25519 BBBB two
  '';
}
