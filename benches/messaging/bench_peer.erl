%% The Erlang side of the messaging bench: a process that counts what it is told and answers what it
%% is asked, and one that tells and asks, on the word of its standard input.
-module(bench_peer).
-export([receiver/0, sender/0]).

receiver() ->
    register(sink, self()),
    io:format("ready~n"),
    sink().

sink() ->
    receive
        {who, From} -> From ! {sink, self()}, sink();
        {count, From, N} -> count(N), From ! counted, sink();
        {ask, From, Body} -> From ! {reply, Body}, sink()
    end.

count(0) -> ok;
count(N) -> receive Body when is_binary(Body) -> count(N - 1) end.

%% `tell N` answers nanoseconds; `ask N` answers nanoseconds of each.
sender() ->
    [Name | _] = init:get_plain_arguments(),
    Node = list_to_atom(Name),
    true = net_kernel:connect_node(Node),
    {sink, Node} ! {who, self()},
    Sink = receive {sink, Pid} -> Pid end,
    io:format("ready~n"),
    obey(Sink).

obey(Sink) ->
    case io:get_line("") of
        eof -> halt(0);
        Line ->
            [Word, Count] = string:lexemes(Line, " \n"),
            N = list_to_integer(Count),
            case Word of
                "tell" -> io:format("~w~n", [timed_tell(Sink, N)]);
                "ask" -> io:format("~s~n", [lists:join(" ", [integer_to_list(T) || T <- asks(Sink, N)])])
            end,
            obey(Sink)
    end.

timed_tell(Sink, N) ->
    Began = erlang:monotonic_time(nanosecond),
    Sink ! {count, self(), N},
    tell(Sink, N),
    receive counted -> ok end,
    erlang:monotonic_time(nanosecond) - Began.

tell(_, 0) -> ok;
tell(Sink, N) -> Sink ! <<N:64, 0:448>>, tell(Sink, N - 1).

asks(_, 0) -> [];
asks(Sink, N) ->
    Body = <<N:64, 0:448>>,
    Began = erlang:monotonic_time(nanosecond),
    Sink ! {ask, self(), Body},
    receive {reply, Body} -> ok end,
    Took = erlang:monotonic_time(nanosecond) - Began,
    [Took | asks(Sink, N - 1)].
