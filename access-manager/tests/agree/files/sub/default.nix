{ sub = builtins.readFile ../one.pub; }
