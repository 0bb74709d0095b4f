{ value = 1; key = builtins.readFile ./one.pub; up = builtins.readFile ../files/one.pub; }
