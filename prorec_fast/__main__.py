from prorec_fast.cli import main

raise SystemExit(main())
